"""The nodes of a tree by name, and their results according to the stores: perplexity, steps, tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from photon_core.evidence.metrics import perplexity
from photon_core.run.history import history
from photon_core.run.line import first_entry, on_line, whole_of
from photon_core.run.run import run_of
from schemas.manifests import ParentRef, RoundManifest
from schemas.reading.world import World
from schemas.sections.sites import Site

Names = tuple[str, ...]
Rounds = Mapping[Names, list[RoundManifest]]
OWN_LOSS = "valid_loss"  # metric of an update: the site's model on its held-out text, before averaging


def path_of(*names: str) -> str:
    """Name of a node: europe/berlin."""
    return "/".join(names)


@dataclass(frozen=True)
class Reached:
    """Results of a node.

    Args:
        names: path from the first file: names of members.
        name: the path as text, or the run of the first file.
        is_site: whether the node is a site.
        round: newest committed round of its run; of a site, the newest that has its update. None before the first.
        entered: the parent's round that its rounds belong to now; None for the first file and for sites.
        loss: loss of the node's model, in nats per token; None if it was not evaluated.
        steps: local steps; of a federation, in each round the most of its members.
        tokens: trained tokens of the node and all below it.
    """

    names: Names
    name: str
    is_site: bool
    round: int | None
    entered: ParentRef | None
    loss: float | None
    steps: int
    tokens: int

    def facts(self) -> dict[str, Any]:
        """Values for scripts."""
        return {
            "node": self.name,
            "site": self.is_site,
            "round": self.round,
            "entered": self.entered.round if self.entered else None,
            "perplexity": self.perplexity,
            "steps": self.steps,
            "tokens": self.tokens,
        }

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the node's model on its held-out text; a federation's is that of all sites below."""
        return None if self.loss is None else perplexity(self.loss)


def rounds_of_tree(world: World) -> Rounds:
    """Path -> every committed round of the federation."""
    return {names: history(run_of(node.federation)) for names, node in world.nodes()}


def reached(world: World, rounds: Rounds) -> list[Reached]:
    """Every node of the tree: a federation, then its members, each followed by the nodes below it."""
    return list(_below(world, (), rounds))


def mean_of_sites(nodes: Sequence[Reached], names: Names) -> float | None:
    """Perplexity of the mean loss of the models of all sites below a node; None if a loss is not known."""
    losses = [node.loss for node in nodes if node.is_site and node.names[: len(names)] == names]
    known = [loss for loss in losses if loss is not None]
    return perplexity(fmean(known)) if known and len(known) == len(losses) else None


def _below(world: World, names: Names, rounds: Rounds) -> Iterator[Reached]:
    federation, mine = world.federation, rounds[names]
    newest, line, entry = (mine[-1] if mine else None), on_line(mine), first_entry(whole_of(mine))
    yield Reached(
        names=names,
        name=path_of(*names) or federation.run,
        is_site=False,
        round=newest.round if newest else None,
        entered=entry.parent if entry else None,
        loss=line[-1].metrics.get("loss") if line else None,
        steps=newest.global_step if newest else 0,
        tokens=newest.total_tokens if newest else 0,
    )
    for member in federation.members:
        if member.name in world.children:
            yield from _below(world.children[member.name], (*names, member.name), rounds)
        else:
            yield _member(line, (*names, member.name), isinstance(member, Site))


def _member(line: Sequence[RoundManifest], names: Names, is_site: bool) -> Reached:
    """A site, or a federation whose file is elsewhere, according to its updates."""
    found = [(m.round, m.updates[names[-1]]) for m in line if names[-1] in m.updates]
    return Reached(
        names=names,
        name=path_of(*names),
        is_site=is_site,
        round=found[-1][0] if found else None,
        entered=None,
        loss=found[-1][1].metrics.get(OWN_LOSS) if found else None,
        steps=sum(update.steps for _, update in found),
        tokens=sum(update.tokens for _, update in found),
    )
