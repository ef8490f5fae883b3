"""What crosses the links of a tree: bytes between a federation and each of its members, and residuals' routes.

All of it follows from manifests: the sizes of the files that they name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from photon_core.evidence.nodes import Names
from photon_core.evidence.tree import Call, Tree, identity
from schemas.manifests import Residual, RoundManifest

UNSENT = "sent to no member: absent, or another fits it better"


@dataclass(frozen=True)
class Link:
    """The link between a federation and a member.

    Args:
        above: path of the federation.
        member: name of the member.
        rounds: rounds in which the member was sampled, with those that were rolled back.
        down: bytes that the member fetched to enter: the model of the round before, averaged moments, residuals.
        up: bytes of its aggregated contributions: changes, key layers, moments, residuals.
    """

    above: Names
    member: str
    rounds: int
    down: int
    up: int


@dataclass(frozen=True)
class Route:
    """A residual that reached a node.

    Args:
        place: round of the first file's run; None if it is not known.
        above: path of the federation that sent it.
        round: round of that federation.
        layer: name of the key layer.
        origin, receiver: paths of two nodes.
        hops: number of links that it has crossed.
    """

    place: int | None
    above: Names
    round: int
    layer: str
    origin: Names
    receiver: Names
    hops: int


def links(tree: Tree) -> list[Link]:
    """Every link over which something went; those of a federation, then those of the federations below it."""
    return [link for names in tree.rounds for link in _links(tree, names)]


def routes(tree: Tree) -> list[Route]:
    """The routes of the residuals of the newest rounds, the newest first."""
    found = [
        Route(
            place=tree.place(call.above, call.round),
            above=call.above,
            round=call.round,
            layer=residual.layer,
            origin=tree.origin(call.above, call.round, residual),
            receiver=(*call.above, call.member),
            hops=residual.hops,
        )
        for call, residuals in tree.sent.items()
        for residual in residuals
    ]
    return sorted(found, key=lambda one: (-(one.place or 0), one.above, -one.round, one.receiver, one.layer))


def dropped(tree: Tree) -> dict[Names, Counter[str]]:
    """Path of a federation -> reason -> number of residuals that ended there without a receiver."""
    found = {}
    for names, rounds in tree.rounds.items():
        counts = Counter[str]()
        for manifest in rounds:
            counts.update(manifest.dropped)
        counts[UNSENT] += sum(len(_unsent(tree, names, *pair)) for pair in pairwise(rounds))
        if +counts:
            found[names] = +counts
    return found


def size(residuals: Iterable[Residual]) -> int:
    """Bytes of residuals."""
    return sum(entry.bytes for residual in residuals for entry in residual.files)


def _links(tree: Tree, names: Names) -> Iterator[Link]:
    rounds, down, up = Counter[str](), Counter[str](), Counter[str]()
    inner = {child.name for child in tree.federation(names).federations}
    for before, manifest in pairwise(tree.rounds[names]):
        for member in manifest.sampled:
            model = before.model if member in inner else before.download or before.model
            rounds[member] += 1
            down[member] += sum(entry.bytes for entry in [*model, *before.moments])
            down[member] += size(tree.sent.get(Call(names, manifest.round, member), ()))
        for member, update in manifest.updates.items():
            up[member] += update.bytes
    for member in rounds:
        yield Link(names, member, rounds[member], down[member], up[member])


def _unsent(tree: Tree, names: Names, before: RoundManifest, manifest: RoundManifest) -> list[Residual]:
    """Residuals that a round had to send, and that reached no member."""
    calls = [Call(names, manifest.round, member) for member in manifest.sampled]
    if not any(call in tree.sent for call in calls):
        return []  # it is older than the rounds whose residuals were read, or no round of training
    there = {identity(residual) for call in calls for residual in tree.sent.get(call, ())}
    return [residual for residual in [*before.down, *before.received] if identity(residual) not in there]
