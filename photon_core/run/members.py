"""Members: who takes part in a federation's rounds, as sampling, dispatch, gathering and limits see them.

Sites, which train on text of their own, are the one kind today. A federation that is a member of another plugs in
here: as a second class beside `SiteMember`, which `member` makes from a section that names a federation instead of
streams. Its flows run its own rounds on its own pool. Its limit is the sum of its members' over those rounds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from photon_core.hardware.parallelism import check_infra, choose_infra
from schemas.federation import Federation
from schemas.view import SiteView, view_of, views

FEDNOVA_FACTOR = 4.0  # of its steps in the file that a site with a time limit may say it has not made


class Work(NamedTuple):
    """Tokens and local steps of a round."""

    tokens: int
    steps: int


# More than anybody trains in a round: more tokens would drown the others' weights, and the largest count of steps
# moves everyone's learning-rate schedule.
ANY_WORK = Work(tokens=10**15, steps=10**9)


class Party(Protocol):
    """Who brings updates to a federation: a member, or a site's view of itself."""

    @property
    def name(self) -> str:
        """Name in the federation and in the store."""
        ...

    @property
    def federation(self) -> Federation:
        """The file, whose settings the updates are of."""
        ...


class Member(Party, Protocol):
    """A member of a federation."""

    @property
    def paused(self) -> bool:
        """Whether it takes part in no round."""
        ...

    @property
    def data_tokens(self) -> int | None:
        """Training tokens registered in the file: its weight where members are sampled by them."""
        ...

    @property
    def round_flow(self) -> str:
        """The flow that it is asked for a contribution with; its deployment is <flow>/<run>-<name>."""
        ...

    @property
    def evaluation_flow(self) -> str:
        """The flow that it is asked for the scores of a candidate with."""
        ...

    def check(self) -> None:
        """Raises FederationError if it could not do its part as the file has it."""
        ...

    def most(self) -> Work:
        """Most work that it can have done in a round."""
        ...

    def least_steps(self) -> int:
        """Least local steps that its update counts as where FedNova divides by them."""
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
        """All its steps; of a site whose nodes train independently, each node's."""
        steps = self.view.steps
        sequences = choose_infra(self.view).nodes * steps * self.view.local.batch_size
        return Work(sequences * self.federation.model.max_seq_len, steps)

    def least_steps(self) -> int:
        """Those of the file; of a site with a time limit, which may make fewer, a FEDNOVA_FACTOR-th of them: a lie
        multiplies its change by no more."""
        steps = self.view.steps
        return steps if self.view.time_limit is None else ceil(steps / FEDNOVA_FACTOR)


@dataclass(frozen=True)
class Named:
    """A member by its name alone, of a file that may not have it any more."""

    name: str
    federation: Federation


def member(federation: Federation, name: str) -> Member:
    """The member of that name. Raises FederationError if there is none."""
    return SiteMember(view_of(federation, name))


def site_of(one: Member) -> SiteView:
    """The view of a member that is a site, whose steps this process can run."""
    assert isinstance(one, SiteMember)
    return one.view


def members(federation: Federation) -> dict[str, Member]:
    """All members by name, the paused ones too, in the file's order."""
    return {view.name: SiteMember(view) for view in views(federation)}


def active(federation: Federation) -> list[Member]:
    """The members that take part."""
    return [one for one in members(federation).values() if not one.paused]


def check_members(federation: Federation) -> None:
    """Raises FederationError if one that takes part could not do its part as the file has it."""
    for one in active(federation):
        one.check()


def most_work(members: Iterable[Member]) -> Work:
    """Most work that any of them can have done in a round."""
    each = [one.most() for one in members]
    return Work(max(work.tokens for work in each), max(work.steps for work in each))
