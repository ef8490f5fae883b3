"""Members of a federation: the interface by which sampling, dispatch, gathering and limits see who takes part.

Sites, which train on their own text, are the only kind today. A federation as a member of another would be a
second class beside `SiteMember`, which `member` creates from a section that names a federation instead of streams.
Its flows run its own rounds on its own pool. Its limit is the sum of its members' limits over those rounds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from photon_core.hardware.parallelism import check_infra, choose_infra
from schemas.federation import Federation
from schemas.view import SiteView, view_of, views

FEDNOVA_FACTOR = 4.0  # a site with a time limit counts with at least 1/FEDNOVA_FACTOR of its steps in the file


class Work(NamedTuple):
    """Tokens and local steps of a round."""

    tokens: int
    steps: int


# More than any site trains in a round. More tokens would outweigh all other sites, and the largest number of steps
# moves the learning-rate schedule of all sites.
ANY_WORK = Work(tokens=10**15, steps=10**9)


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

    def check(self) -> None:
        check_infra(self.view)

    def most(self) -> Work:
        """All steps of the site; the tokens are those of all nodes if they train independently."""
        steps = self.view.steps
        sequences = choose_infra(self.view).nodes * steps * self.view.local.batch_size
        return Work(sequences * self.federation.model.max_seq_len, steps)

    def least_steps(self) -> int:
        """The steps of the file. A site with a time limit may make fewer, so for it 1/FEDNOVA_FACTOR of them: a
        false claim multiplies its change by at most FEDNOVA_FACTOR."""
        steps = self.view.steps
        return steps if self.view.time_limit is None else ceil(steps / FEDNOVA_FACTOR)


@dataclass(frozen=True)
class Named:
    """A member by its name alone, which the file may no longer contain."""

    name: str
    federation: Federation


def member(federation: Federation, name: str) -> Member:
    """The member of that name.

    Raises:
        FederationError: there is none.
    """
    return SiteMember(view_of(federation, name))


def site_of(one: Member) -> SiteView:
    """The view of a member that is a site, whose steps this process can run."""
    assert isinstance(one, SiteMember)
    return one.view


def members(federation: Federation) -> dict[str, Member]:
    """All members by name, with the paused ones, in the file's order."""
    return {view.name: SiteMember(view) for view in views(federation)}


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
    return Work(max(work.tokens for work in each), max(work.steps for work in each))
