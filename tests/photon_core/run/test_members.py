"""Members of a federation: a site's limits and flows; another kind needs no more than the interface."""

from dataclasses import dataclass
from typing import Any

import pytest

from photon_core.errors import FederationError
from photon_core.run.members import Member, Named, SiteMember, Work, active, member, members, most_work, site_of
from schemas.federation import Federation
from tests.federations import sample


def federation(**sites: dict[str, Any]) -> Federation:
    given = [{"name": name, "streams": [{"name": "web", "source": "x"}], **more} for name, more in sites.items()]
    return Federation.model_validate(sample(sites=given))


@dataclass(frozen=True)
class Union:
    """Two members and more as one, over some rounds of theirs: what a federation within a federation would be."""

    name: str
    federation: Federation
    inner: tuple[Member, ...]
    rounds: int
    paused = False
    data_tokens = None
    round_flow = "federated-run"
    evaluation_flow = "site-evaluate"

    def check(self) -> None:
        for one in self.inner:
            one.check()

    def most(self) -> Work:
        each = [one.most() for one in self.inner]
        steps = max(work.steps for work in each)
        return Work(self.rounds * sum(work.tokens for work in each), self.rounds * steps)

    def least_steps(self) -> int:
        return self.rounds * min(one.least_steps() for one in self.inner)


def test_sites_are_members() -> None:
    file = federation(a={}, b={"paused": True}, c={"data_tokens": 7})
    assert list(members(file)) == ["a", "b", "c"]
    assert [one.name for one in active(file)] == file.active == ["a", "c"]
    c = member(file, "c")
    assert (c.data_tokens, c.paused, c.round_flow, c.evaluation_flow) == (7, False, "site-round", "site-evaluate")
    assert isinstance(c, SiteMember) and site_of(c).name == "c" and c.federation is file
    c.check()
    with pytest.raises(FederationError, match="no site is named 'd'"):
        member(file, "d")


def test_a_site_s_limits_are_its_own() -> None:
    file = federation(a={}, b={"steps": 2}, c={"time_limit": 1.0})
    steps, tokens = file.local.steps, file.local.batch_size * file.model.max_seq_len
    assert [one.most() for one in members(file).values()] == [Work(n * tokens, n) for n in (steps, 2, steps)]
    assert [one.least_steps() for one in members(file).values()] == [steps, 2, -(-steps // 4)]
    assert most_work(members(file).values()) == Work(steps * tokens, steps)
    assert most_work([member(file, "b")]) == Work(2 * tokens, 2)


def test_a_member_of_another_kind_has_the_sum_of_its_members_limits() -> None:
    inner = federation(a={}, b={"steps": 2})
    union = Union("europe", inner, tuple(members(inner).values()), rounds=3)
    steps, tokens = inner.local.steps, inner.local.batch_size * inner.model.max_seq_len
    assert union.most() == Work(3 * (steps + 2) * tokens, 3 * steps)
    everybody: list[Member] = [union, *members(federation(c={})).values()]
    assert most_work(everybody) == union.most()


def test_a_name_whose_file_may_have_lost_it() -> None:
    assert Named("gone", federation(a={})).name == "gone"
