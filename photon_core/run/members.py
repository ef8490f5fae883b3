"""Members of a federation: the interface by which sampling, dispatch, gathering and limits see who takes part.

A site trains on its own text. A federation that is a member runs its own rounds, over its own members, in each
round of its parent. Its limit is the sum of its members' limits over those rounds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple, Protocol, TypeVar

from photon_core.errors import FederationError
from photon_core.hardware.parallelism import check_infra, choose_infra
from schemas.federation import Federation
from schemas.reading.paths import file_options
from schemas.reading.places import local_path
from schemas.reading.related import check_fit
from schemas.reading.world import World, load_world
from schemas.sections.tree import Child
from schemas.view import SiteView, active_views, view_of, views

T = TypeVar("T")
FEDNOVA_FACTOR = 4.0  # a site with a time limit counts with at least 1/FEDNOVA_FACTOR of its steps in the file


class Work(NamedTuple):
    """Training in a round: tokens, local steps, and tokens in one of these steps."""

    tokens: int
    steps: int
    a_step: int


# More than any site trains in a round. More tokens would outweigh all other sites, and the largest number of steps
# moves the learning-rate schedule of all sites.
ANY_WORK = Work(tokens=10**15, steps=10**9, a_step=10**15)


class Party(Protocol):
    """A source of updates: a member, or a site's view of itself."""

    @property
    def name(self) -> str:
        """Name in the federation and in the store."""
        ...

    @property
    def federation(self) -> Federation:
        """The federation file whose settings the updates have."""
        ...


class Member(Party, Protocol):
    """A member of a federation."""

    @property
    def paused(self) -> bool:
        """Whether the member takes part in no round."""
        ...

    @property
    def data_tokens(self) -> int | None:
        """Training tokens registered in the file: the weight for `rounds.sampling: tokens`."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of these flows by which the member is known."""
        ...

    @property
    def round_flow(self) -> str:
        """The flow that requests a contribution; its deployment is <flow>/<run>-<name>."""
        ...

    @property
    def evaluation_flow(self) -> str:
        """The flow that requests the scores of a candidate."""
        ...

    def check(self) -> None:
        """Check that the member can train with the file's settings.

        Raises:
            FederationError: it cannot.
        """
        ...

    def most(self) -> Work:
        """Maximum work of the member in a round."""
        ...

    def least_steps(self) -> int:
        """Minimum number of local steps by which FedNova divides the member's update."""
        ...

    def evaluated(self) -> int:
        """Most tokens that it can predict in an evaluation."""
        ...


@dataclass(frozen=True)
class SiteMember:
    """A site as a member."""

    view: SiteView
    round_flow = "site-round"
    evaluation_flow = "site-evaluate"

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def federation(self) -> Federation:
        return self.view.federation

    @property
    def paused(self) -> bool:
        return self.view.section.paused

    @property
    def data_tokens(self) -> int | None:
        return self.view.section.data_tokens

    @property
    def parameters(self) -> dict[str, Any]:
        return {"site": self.name}

    def check(self) -> None:
        check_infra(self.view)

    def most(self) -> Work:
        """All steps of the site; the tokens are those of all nodes if they train independently."""
        steps = self.view.steps
        sequences = choose_infra(self.view).nodes * self.view.local.batch_size
        a_step = sequences * self.federation.model.max_seq_len
        return Work(steps * a_step, steps, a_step)

    def least_steps(self) -> int:
        """The steps of the file. A site with a time limit may make fewer, so for it 1/FEDNOVA_FACTOR of them: a
        false claim multiplies its change by at most FEDNOVA_FACTOR."""
        steps = self.view.steps
        return steps if self.view.time_limit is None else ceil(steps / FEDNOVA_FACTOR)

    def evaluated(self) -> int:
        return evaluated_tokens(self.federation)


@dataclass(frozen=True)
class FederationMember:
    """A federation as a member of another.

    Args:
        federation: parent of the member.
        section: section of the member in the parent's file.
    """

    federation: Federation
    section: Child
    round_flow = "fit"
    evaluation_flow = "fit-evaluate"

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def paused(self) -> bool:
        return self.section.paused

    @property
    def data_tokens(self) -> int | None:
        return self.section.data_tokens

    @property
    def parameters(self) -> dict[str, Any]:
        return {"member": self.name, "deployed": True}

    def world(self) -> World | None:
        """The tree from the member down; None if the member's file is not on this machine or at a URL.

        Raises:
            FederationError: its file or one below it is wrong, or belongs to another federation.
        """
        place = self.section.federation
        if place is None or ((path := local_path(place)) is not None and not path.expanduser().is_file()):
            return None
        world = load_world(place, options=file_options(self.federation, place))
        check_fit(self.federation, self.name, place, world.federation)
        return world

    def check(self) -> None:
        """Check every site below it whose file is available; the other federations check themselves at entry."""
        world = self.world()
        for _, node in world.nodes() if world else ():
            for view in active_views(node.federation):
                try:
                    check_infra(view)
                except FederationError as error:
                    raise FederationError(f"{node.file}: {error}") from None

    def most(self) -> Work:
        """The limit from its files; ANY_WORK if one of them cannot be read here."""
        world = self._readable()
        return ANY_WORK if world is None else _most_of(world)

    def least_steps(self) -> int:
        world = self._readable()
        return 1 if world is None else _least_of(world)

    def evaluated(self) -> int:
        """The sum over its members."""
        world = self._readable()
        return ANY_WORK.tokens if world is None else _evaluated_of(world)

    def _readable(self) -> World | None:
        try:
            return self.world()
        except FederationError:  # gives no limit; `check` reports the error
            return None


def _most_of(world: World) -> Work:
    """Maximum work of one call by the parent: in each round, that of the largest members it can sample."""
    each = _each(world, SiteMember.most, _most_of, ANY_WORK)
    sampled = world.federation.sites_per_round
    tokens, a_step = (
        sum(sorted(values, reverse=True)[:sampled])
        for values in ([work.tokens for work in each], [work.a_step for work in each])
    )
    found = Work(world.rounds * tokens, world.rounds * max(work.steps for work in each), a_step)
    return Work(*map(min, found, ANY_WORK))


def _least_of(world: World) -> int:
    """Minimum local steps of one call."""
    return world.rounds * min(_each(world, SiteMember.least_steps, _least_of, 1))


def _evaluated_of(world: World) -> int:
    """Most tokens in an evaluation by all members."""
    return min(sum(_each(world, SiteMember.evaluated, _evaluated_of, ANY_WORK.tokens)), ANY_WORK.tokens)


def _each(
    world: World, of_site: Callable[[SiteMember], T], of_world: Callable[[World], T], of_unknown: T
) -> list[T]:
    """A value of each active member of a node; `of_unknown` for one whose file is not available."""
    inner = [child.name for child in world.federation.federations if not child.paused]
    return [
        *(of_site(SiteMember(view)) for view in active_views(world.federation)),
        *(of_world(world.children[name]) if name in world.children else of_unknown for name in inner),
    ]


def evaluated_tokens(federation: Federation) -> int:
    """Most tokens that a site predicts in an evaluation: all but the first of each sequence."""
    return federation.data.evaluation_sequences * (federation.model.max_seq_len - 1)


@dataclass(frozen=True)
class Named:
    """A member by its name alone, which the file may no longer contain."""

    name: str
    federation: Federation


def is_federation(party: Party) -> bool:
    """Whether it is one of the federations in its file. A `Named` has no kind."""
    return any(child.name == party.name for child in party.federation.federations)


def member(federation: Federation, name: str) -> Member:
    """The member of that name.

    Raises:
        FederationError: there is none.
    """
    for section in federation.federations:
        if section.name == name:
            return FederationMember(federation, section)
    return SiteMember(view_of(federation, name))


def world_of(federation: Federation, name: str) -> World:
    """The tree from a member that is a federation down.

    Raises:
        FederationError: its file is not on this machine, or is wrong.
    """
    one = member(federation, name)
    world = one.world() if isinstance(one, FederationMember) else None
    if world is None:
        raise FederationError(
            f"federations: the file of '{name}' is not on this machine; write its path under federation:, or run "
            "this where its coordinator runs"
        )
    return world


def members(federation: Federation) -> dict[str, Member]:
    """All members by name, with the paused ones, in the file's order: sites, then federations."""
    everybody: list[Member] = [SiteMember(view) for view in views(federation)]
    everybody += [FederationMember(federation, section) for section in federation.federations]
    return {one.name: one for one in everybody}


def active(federation: Federation) -> list[Member]:
    """The members that take part."""
    return [one for one in members(federation).values() if not one.paused]


def check_members(federation: Federation) -> None:
    """Check that all active members can train with the file's settings.

    Raises:
        FederationError: a member cannot.
    """
    for one in active(federation):
        one.check()


def most_work(members: Iterable[Member]) -> Work:
    """Maximum work of any of these members in a round."""
    each = [one.most() for one in members]
    return Work(*map(max, zip(*each, strict=True)))
