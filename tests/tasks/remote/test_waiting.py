"""Whom a round waits for: until the quorum and a grace, or the deadline; what its state says meanwhile."""

import threading
import time
import uuid
from concurrent.futures import Future
from typing import Any

import pytest

from tasks.remote.waiting import Limits, Waiting, wait_for


class Sites:
    """Tasks that wait for the sites a, b and c, controlled by the test."""

    def __init__(self) -> None:
        from prefect.futures import PrefectConcurrentFuture

        self.waiting, self.told = Waiting(), list[str]()
        self.results: dict[str, Future[Any]] = {site: Future() for site in "abc"}
        self.futures = {site: PrefectConcurrentFuture(uuid.uuid4(), self.results[site]) for site in "abc"}

    def done(self, *sites: str) -> None:
        from prefect.states import Completed

        for site in sites:
            self.results[site].set_result(Completed())

    def wait(self, needed: int, seconds: float, grace: float | None) -> tuple[list[str], str]:
        limits = Limits(needed, time.time() + seconds, grace, slack=0.0)
        return wait_for(self.futures, self.waiting, lambda: limits, self.told.append)


def test_all_are_done() -> None:
    sites = Sites()
    sites.done("a", "b", "c")
    assert sites.wait(3, 60, None) == ([], "") and sites.told == []


def test_who_has_failed_is_waited_for_during_grace_once_the_quorum_is_met() -> None:
    sites = Sites()
    sites.waiting.report("b", "Failed (no space left)")
    sites.waiting.report("c", "Crashed")
    sites.done("a")
    late, waited = sites.wait(1, 600, 0.2)
    assert late == [] and waited.endswith("(rounds.grace) for a retry of b, c")
    assert "b: Failed (no space left); c: Crashed" in sites.told[0] and sites.told[-1] == ""
    why = sites.waiting.pause("b", 0)
    assert "the quorum is met" in why and "Failed (no space left)" in why and "(rounds.grace)" in why
    assert sites.waiting.pause("a", 0) == ""


@pytest.mark.parametrize(
    ("needed", "grace", "failed"),
    [(2, 0.0, "bc"), (1, None, "bc"), (1, 0.0, "b")],
    ids=["below the quorum", "no grace", "another is at work"],
)
def test_otherwise_until_the_deadline(needed: int, grace: float | None, failed: str) -> None:
    sites = Sites()
    sites.done("a")
    for site in failed:
        sites.waiting.report(site, "Failed")
    assert sites.wait(needed, 0.3, grace) == (["b", "c"], "")
    assert sites.told[0].startswith("waits until 20") and " UTC for a retry of the failed flow" in sites.told[0]
    assert all(f"{site}: Failed" in sites.told[0] for site in failed)


def test_a_retry_within_the_grace_is_waited_for() -> None:
    sites = Sites()
    sites.done("a", "c")
    sites.waiting.report("b", "Failed")

    def retry() -> None:
        sites.waiting.report("b", "")
        sites.done("b")

    timer = threading.Timer(0.2, retry)
    timer.start()
    assert sites.wait(1, 600, 300) == ([], "")
    timer.join()


def test_tasks_end_with_the_round() -> None:
    waiting = Waiting()
    threading.Timer(0.1, waiting.close).start()
    assert waiting.pause("a", 60) == "the round has ended"
