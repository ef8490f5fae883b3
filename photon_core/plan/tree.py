"""The prediction of a tree: seconds of a root's round, bytes by link, and the surplus over one flat federation.

    T(q) = rounds of a call x (max over members c of (T(c) + transfers of c) + aggregation + evaluation)

T of a site is its start and its local steps. Transfers are the bytes down and up over the member's declared link.
They are counted from the sizes of the model's parts: a member fetches a model and returns one, key layers whole.
Residuals count as many as there can be: at most one of each key layer for a member in a round.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from photon_core.evidence.nodes import Names, Rounds, path_of
from photon_core.plan.costs import (
    aggregation_bytes,
    contribution_bytes,
    entry_bytes,
    flat_bytes,
    key_bytes,
    model_bytes,
    over_link,
    update_bytes,
)
from photon_core.plan.measured import WINDOW, Measured, call_seconds, measure
from photon_core.plan.predict import AGGREGATION_RATE, evaluation_seconds, site_plans, together
from schemas.federation import Federation
from schemas.reading.world import World
from schemas.sections.tree import Child


@dataclass(frozen=True)
class MemberPlan:
    """A member in a round of its federation.

    Args:
        names: path.
        work: seconds between its download and its upload; None if unknown.
        download, upload: bytes, with residuals in the mean over the members.
        transfers: seconds of these, down and up; None without a declared link.
        flat: bytes that a site would move in one flat federation; 0 for a federation.
        node: its own plan, if it is a federation whose file is here.
        is_site: whether it is a site.
    """

    names: Names
    work: float | None
    download: float
    upload: float
    transfers: tuple[float | None, float | None]
    flat: float = 0.0
    node: "NodePlan | None" = None
    is_site: bool = True

    @property
    def transfer_seconds(self) -> float:
        """Seconds of both transfers; 0 without a declared link."""
        return sum(seconds or 0.0 for seconds in self.transfers)

    @property
    def seconds(self) -> float | None:
        return None if self.work is None else self.work + self.transfer_seconds


@dataclass(frozen=True)
class NodePlan:
    """A federation of the tree.

    Args:
        names: path.
        name: the path as text, or the run of the first file.
        rounds: its rounds in one round of its parent; 1 for a root.
        members: members that are not paused.
        sampled: members a round.
        members_seconds: seconds until every member of a round has uploaded; None if one is unknown.
        aggregate, evaluate: seconds of these phases.
        calibrated: number of rounds behind the calibration; 0 without one.
    """

    names: Names
    name: str
    rounds: int
    members: list[MemberPlan]
    sampled: int
    members_seconds: float | None
    aggregate: float
    evaluate: float
    calibrated: int

    @property
    def round_seconds(self) -> float | None:
        return None if self.members_seconds is None else self.members_seconds + self.aggregate + self.evaluate

    @property
    def call_seconds(self) -> float | None:
        """Seconds of its part in one round of its parent; of a root, seconds of a round."""
        return None if self.round_seconds is None else self.rounds * self.round_seconds

    @property
    def share(self) -> float:
        """Share of the rounds in which a member is sampled."""
        return self.sampled / len(self.members) if self.members else 0.0

    def below(self) -> Iterator["NodePlan"]:
        """This one, and all below it."""
        yield self
        for member in self.members:
            if member.node is not None:
                yield from member.node.below()


@dataclass(frozen=True)
class LinkPlan:
    """A link in one round of the first file: how often it is used in the mean, and bytes in both directions."""

    above: str
    member: MemberPlan
    times: float

    @property
    def down(self) -> float:
        return self.times * self.member.download

    @property
    def up(self) -> float:
        return self.times * self.member.upload


@dataclass(frozen=True)
class TreePlan:
    """The plan of a tree.

    Args:
        root: the first federation.
        count: its number of rounds; None below a parent.
        measured: median seconds of its latest rounds; None without any.
    """

    root: NodePlan
    count: int | None = None
    measured: float | None = None

    @cached_property
    def links(self) -> list[LinkPlan]:
        """Every link of the tree."""
        return list(_links(self.root, float(self.root.rounds)))

    @property
    def round_bytes(self) -> float:
        """Bytes over all links in one round of the first file; below a parent, in one call."""
        return sum(link.down + link.up for link in self.links)

    @property
    def flat_bytes(self) -> float | None:
        """Bytes of as many rounds of the same sites in one flat federation; None if not all sites are known."""
        if self.unknown:
            return None
        return sum(link.times * link.member.flat for link in self.links)

    @property
    def over_flat(self) -> float | None:
        """Bytes of the tree over those of the flat federation."""
        return self.round_bytes / self.flat_bytes if self.flat_bytes else None

    @property
    def unknown(self) -> list[Names]:
        """Federations whose file is not here: what lies below them is not in the plan."""
        return [link.member.names for link in self.links if not link.member.is_site and link.member.node is None]

    @property
    def without_speed(self) -> list[Names]:
        """Sites that declare no hardware and that no round has measured."""
        return [link.member.names for link in self.links if link.member.is_site and link.member.work is None]

    @property
    def seconds(self) -> float | None:
        """Seconds of a round of the first file; below a parent, of its call."""
        return self.root.call_seconds

    @property
    def run_seconds(self) -> float | None:
        return None if self.seconds is None or self.count is None else self.count * self.seconds


@dataclass(frozen=True)
class _Node:
    """What the plan of a federation follows from.

    Args:
        world: its part of the tree.
        names: its path.
        rounds: rounds so far, of every federation of the tree.
        received: residuals of each key layer that its parent sends it in a call, in the mean.
    """

    world: World
    names: Names
    rounds: Rounds
    received: float = 0.0

    @property
    def federation(self) -> Federation:
        return self.world.federation

    @cached_property
    def measured(self) -> Measured | None:
        known = {name: call_seconds(self.rounds.get((*self.names, name), [])) for name in self.world.children}
        return measure(self.federation, self.rounds.get(self.names, []), known)


def plan_tree(world: World, rounds: Rounds) -> TreePlan:
    """The plan of a tree.

    Args:
        world: its files.
        rounds: path -> committed rounds, for the calibration; a federation without any is planned as declared.
    """
    federation = world.federation
    took = [sum(m.seconds.values()) for m in rounds.get((), []) if m.updates and m.seconds][-WINDOW:]
    root, _ = _plan(_Node(world, (), rounds))
    return TreePlan(root, federation.rounds.count, median(took) if took else None)


def calls_of(world: World, is_first: bool) -> int:
    """Rounds of a federation in one round of its parent; 1 for a root."""
    return 1 if is_first and world.federation.parent is None else world.rounds


def residuals_down(world: World, received: float) -> float:
    """Residuals of each key layer that a federation can send to its members in a round, in the mean over a call.

    One comes from each member that is a federation with policy `tree`, one from its own pick under `region`, and
    `received` from its parent in a call's first round.
    """
    federation = world.federation
    worldlm = federation.worldlm
    if worldlm is None or worldlm.residuals == "off":
        return 0.0
    handed = sum(hands_up(world, child) for child in federation.federations if not child.paused)
    return handed + (worldlm.residuals == "region") + received / world.rounds


def hands_up(world: World, child: Child) -> bool:
    """Whether a member that is a federation hands residuals up; one whose file is not here is taken to."""
    below = world.children.get(child.name)
    worldlm = below.federation.worldlm if below else world.federation.worldlm
    return worldlm is not None and worldlm.residuals == "tree"


def _plan(node: _Node) -> tuple[NodePlan, float]:
    """The plan of a federation, and seconds of an evaluation at all sites below it, by what they declare."""
    federation, measured = node.federation, node.measured
    each = min(1.0, residuals_down(node.world, node.received) / max(1, federation.sites_per_round))
    sites = _sites(node, each)
    inner = [_inner(node, child, each) for child in federation.federations if not child.paused]
    members = [*sites, *(member for member, _ in inner)]
    upload = sum(member.upload for member in members) / max(1, len(members))
    sampled = min(federation.sites_per_round, len(members))
    read = aggregation_bytes(federation, sampled, upload)
    plans = site_plans(federation, measured, federation.local.steps)
    evaluate = max([evaluation_seconds(federation, plans), *(seconds for _, seconds in inner)])
    found = NodePlan(
        names=node.names,
        name=path_of(*node.names) or federation.run,
        rounds=calls_of(node.world, not node.names),
        members=members,
        sampled=sampled,
        members_seconds=together([member.seconds for member in members], sampled, measured),
        aggregate=read * (measured.aggregate if measured else 1 / AGGREGATION_RATE),
        evaluate=measured.evaluate if measured else evaluate,
        calibrated=measured.rounds if measured else 0,
    )
    return found, evaluate


def _sites(node: _Node, residuals: float) -> list[MemberPlan]:
    """The sites of a federation; `residuals` of each key layer reach each of them in a round."""
    federation = node.federation
    down, up = model_bytes(federation) + residuals * key_bytes(federation), update_bytes(federation)
    sections = {site.name: site for site in federation.sites}
    return [
        MemberPlan(
            names=(*node.names, plan.name),
            work=None if plan.train is None else plan.start + plan.train,
            download=down,
            upload=up,
            flat=flat_bytes(federation),
            transfers=over_link(sections[plan.name], down, up),
        )
        for plan in site_plans(federation, node.measured, federation.local.steps)
    ]


def _inner(node: _Node, child: Child, residuals: float) -> tuple[MemberPlan, float]:
    """A member that is a federation, and seconds until all sites below it have evaluated a candidate."""
    federation, below = node.federation, node.world.children.get(child.name)
    own = below.federation if below else None
    keys = key_bytes(federation)
    down = entry_bytes(federation, own) + residuals * keys
    up = float(contribution_bytes(federation, own) + (keys if hands_up(node.world, child) else 0))
    names = (*node.names, child.name)
    plan, evaluate = _plan(_Node(below, names, node.rounds, residuals)) if below else (None, 0.0)
    member = MemberPlan(
        names=names,
        work=plan.call_seconds if plan else None,
        download=down,
        upload=up,
        node=plan,
        is_site=False,
        transfers=over_link(child, down, up),
    )
    return member, (over_link(child, entry_bytes(federation, own), 0)[0] or 0.0) + evaluate


def _links(node: NodePlan, rounds: float) -> Iterator[LinkPlan]:
    """Links of a federation that trains `rounds` rounds in one of the first file, and of those below it."""
    times = rounds * node.share
    for member in node.members:
        yield LinkPlan(node.name, member, times)
        if member.node is not None:
            yield from _links(member.node, times * member.node.rounds)
