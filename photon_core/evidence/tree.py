"""A tree of federations as its stores have it: the rounds of every federation, and what its members entered with.

A node's own rounds are placed in those of the first file: an entry names the parent's round, and so on upwards.
Names of residuals' origins are relative to the federation that sent them down first; here they are whole paths.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from photon_core.evidence.nodes import (
    UNREADABLE,
    Names,
    Problems,
    Reached,
    Rounds,
    path_of,
    reached,
    readable_rounds,
)
from photon_core.run.history import READERS
from photon_core.run.line import on_line, whole_of
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import Attention, Residual, RoundManifest
from schemas.reading.world import World
from schemas.view import views

OUTSIDE = ".."  # in a path: the federation above the first file
CALLS = 3  # newest entries of a site that are read
ROUTED = 200  # newest rounds of a federation whose residuals are read


class Call(NamedTuple):
    """What a member entered a round of a federation with.

    Args:
        above: path of the federation.
        round: its round.
        member: name of the member.
    """

    above: Names
    round: int
    member: str


class Entry(NamedTuple):
    """A node's attention at entry: its call, and key layer -> attention."""

    call: Call
    attention: Mapping[str, Attention]


@dataclass(frozen=True)
class Tree:
    """A tree as its stores have it.

    Args:
        world: its files.
        rounds: path -> every committed round of the federation, for those that can be read.
        problems: path -> why a federation cannot be read.
        sent: residuals that members entered with, in the newest rounds of each federation.
        site_entries: path of a site -> its newest entries, the newest last.
    """

    world: World
    rounds: Rounds
    problems: Problems = field(default_factory=dict)
    sent: Mapping[Call, Sequence[Residual]] = field(default_factory=dict)
    site_entries: Mapping[Names, Sequence[Entry]] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> list[Reached]:
        """Every node with its results, in the order of the files."""
        return reached(self.world, self.rounds, self.problems)

    @cached_property
    def lines(self) -> dict[Names, list[RoundManifest]]:
        """Path -> rounds that the federation's latest model comes from, from round 0 on."""
        return {names: on_line(rounds) for names, rounds in self.rounds.items()}

    def federation(self, names: Names) -> Federation:
        """The file of a federation."""
        world = self.world
        for name in names:
            world = world.children[name]
        return world.federation

    @cached_property
    def layers(self) -> list[str]:
        """Names of the key layers, as the first federation has them."""
        return sorted(self.rounds[()][-1].key_layers) if self.rounds.get(()) else []

    def mixed(self, attention: Mapping[str, Attention]) -> dict[str, Attention]:
        """Attention of the tree's key layers. Members write it, so values that do not fit are excluded."""
        known = {layer: attention[layer] for layer in self.layers if layer in attention}
        return {layer: one for layer, one in known.items() if _is_whole(one)}

    def name(self, names: Names) -> str:
        """Name of a node for people."""
        return path_of(*names) or self.world.federation.run

    def place(self, names: Names, t: int) -> int | None:
        """The round of the first file's run that round t of a federation belongs to; None if it is not known."""
        while names:
            calls = self._calls.get(names, [])
            number = bisect_right(calls, t, key=itemgetter(0))
            if not number:
                return None
            names, t = names[:-1], calls[number - 1][1]
        return t

    def entries(self, names: Names) -> list[Entry]:
        """The entries of a node, the newest last: of a federation all on its line, of a site the newest."""
        if names not in self.rounds:
            return list(self.site_entries.get(names, []))
        found = [manifest for manifest in whole_of(self.rounds[names]) if names and manifest.parent is not None]
        return [
            Entry(Call(names[:-1], above.round, names[-1]), manifest.attention)
            for manifest in reversed(found)
            if (above := manifest.parent) is not None
        ]

    def origin(self, above: Names, t: int, residual: Residual) -> Names:
        """Path of the origin of a residual that a federation sent in round t."""
        while above in self.rounds and 0 < t <= len(self.rounds[above]):
            before = self.rounds[above][t - 1]
            if before.parent is None or identity(residual) not in map(identity, before.received):
                break
            if not above:
                return (OUTSIDE, *residual.origin)
            above, t = above[:-1], before.parent.round
        return (*above, *residual.origin)

    @cached_property
    def _calls(self) -> dict[Names, list[tuple[int, int]]]:
        """Path -> (round, parent's round) of each entry on the federation's line, in order."""
        return {
            names: [(m.round, m.parent.round) for m in whole_of(rounds) if m.parent is not None][::-1]
            for names, rounds in self.rounds.items()
        }


def _is_whole(attention: Attention) -> bool:
    return bool(attention.rows) and len(attention.rows) == len(attention.weights) and min(attention.weights) >= 0


def identity(residual: Residual) -> tuple[str, tuple[str, ...], int]:
    """What does not change while a residual is passed down."""
    return residual.layer, tuple(residual.origin), residual.born


def read_tree(world: World, problems: Problems) -> Tree:
    """Read a tree for its pages.

    Args:
        world: its files.
        problems: federations that are known to be unreadable.

    Raises:
        PhotonError: the first federation itself cannot be read.
    """
    rounds, found = readable_rounds(world, problems)
    calls = [call for names, mine in rounds.items() for call in with_residuals(names, mine)]
    nodes = dict(world.nodes())
    sites = [(*names, view.name) for names in rounds for view in views(nodes[names].federation)]

    def residuals(call: Call) -> list[Residual]:
        try:
            return run_of(nodes[call.above].federation).residuals(call.round, call.member)
        except UNREADABLE:
            return []

    def newest(site: Names) -> list[Entry]:
        return list(_site_entries(nodes[site[:-1]], site, on_line(rounds[site[:-1]])))

    with ThreadPoolExecutor(READERS) as pool:
        sent = dict(zip(calls, pool.map(residuals, calls), strict=True))
        entries = dict(zip(sites, pool.map(newest, sites), strict=True))
    return Tree(world, rounds, found, sent, entries)


def with_residuals(names: Names, rounds: Sequence[RoundManifest]) -> Iterator[Call]:
    """The calls of a federation's members in its newest rounds that had residuals to send."""
    for before, manifest in list(pairwise(rounds))[-ROUTED:]:
        if before.down or before.received:
            yield from (Call(names, manifest.round, member) for member in manifest.sampled)


def _site_entries(node: World, site: Names, line: Sequence[RoundManifest]) -> Iterator[Entry]:
    """A site's newest entries, the newest last, without those whose update cannot be read."""
    run, name = run_of(node.federation), site[-1]
    for manifest in [manifest for manifest in line if name in manifest.updates][-CALLS:]:
        try:
            update = run.update(manifest.round, name, manifest.updates[name].attempt)
        except UNREADABLE:
            continue
        if update is not None and update.entry:
            yield Entry(Call(site[:-1], manifest.round, name), update.entry)
