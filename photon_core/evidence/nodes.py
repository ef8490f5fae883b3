"""The nodes of a tree by name, and their results according to the stores: perplexity, steps, tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from photon_core.errors import PhotonError
from photon_core.evidence.metrics import perplexity
from photon_core.formatting import printable
from photon_core.run.history import history
from photon_core.run.line import first_entry, on_line, whole_of
from photon_core.run.run import run_of
from schemas.manifests import ParentRef, RoundManifest
from schemas.reading.world import World
from schemas.sections.sites import Site

Names = tuple[str, ...]
Rounds = Mapping[Names, list[RoundManifest]]
Problems = Mapping[Names, str]  # path of a federation -> why its file or its store cannot be read
OWN_LOSS = "valid_loss"  # metric of an update: the site's model on its held-out text, before averaging
UNREADABLE = (PhotonError, OSError)


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
        problem: why the federation's file or store cannot be read; empty if it can. Round, steps and tokens are
            then those that its parent knows.
    """

    names: Names
    name: str
    is_site: bool
    round: int | None
    entered: ParentRef | None
    loss: float | None
    steps: int
    tokens: int
    problem: str = ""

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
            "problem": self.problem,
        }

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the node's model on its held-out text; a federation's is that of all sites below."""
        return None if self.loss is None else perplexity(self.loss)


def rounds_of_tree(world: World) -> Rounds:
    """Path -> every committed round of the federation."""
    return {names: history(run_of(node.federation)) for names, node in world.nodes()}


def readable_rounds(world: World, problems: Problems) -> tuple[Rounds, Problems]:
    """The same for pages, with the federations that cannot be read, and why, in place of an error.

    Args:
        world: the tree.
        problems: federations that are known to be unreadable.

    Raises:
        PhotonError: the first federation itself cannot be read.
    """
    rounds: dict[Names, list[RoundManifest]] = {}
    found = dict(problems)
    for names, node in world.nodes():
        if names in found:
            continue
        try:
            rounds[names] = history(run_of(node.federation))
        except UNREADABLE as error:
            if not names:
                raise
            found[names] = printable(str(error))
    return rounds, found


def reached(world: World, rounds: Rounds, problems: Problems | None = None) -> list[Reached]:
    """Every node of the tree: a federation, then its members, each followed by the nodes below it.

    Args:
        world: the tree.
        rounds: rounds of every federation that can be read.
        problems: why the others cannot.
    """
    return list(_below(world, (), rounds, problems or {}, []))


def unread(nodes: Sequence[Reached]) -> list[str]:
    """A sentence for each federation that cannot be read."""
    return [f"{node.name} cannot be read: {node.problem}" for node in nodes if node.problem]


def mean_of_sites(nodes: Sequence[Reached], names: Names) -> float | None:
    """Perplexity of the mean loss of the models of all sites below a node; None if a loss is not known."""
    losses = [node.loss for node in nodes if node.is_site and node.names[: len(names)] == names]
    known = [loss for loss in losses if loss is not None]
    return perplexity(fmean(known)) if known and len(known) == len(losses) else None


def _below(
    world: World, names: Names, rounds: Rounds, problems: Problems, above: Sequence[RoundManifest]
) -> Iterator[Reached]:
    """Results of a federation and of all nodes below it. `above` is the line of its parent."""
    federation, mine = world.federation, rounds.get(names, [])
    line = on_line(mine)
    if names in problems:
        yield replace(_member(above, names, False), problem=problems[names])
    else:
        newest, entry = (mine[-1] if mine else None), first_entry(whole_of(mine))
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
        path = (*names, member.name)
        if member.name in world.children:
            yield from _below(world.children[member.name], path, rounds, problems, line)
        else:
            found = _member(line, path, isinstance(member, Site))
            yield replace(found, problem=world.lost.get(member.name, ""))


def _member(line: Sequence[RoundManifest], names: Names, is_site: bool) -> Reached:
    """A site, or a federation that is known to its parent alone, according to its updates."""
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
