"""Rounds by the clock: a schedule's flow runs, made by a real server's scheduler, and what each has done."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.deployment import Deployed, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_scheduled_round_advances_the_model_by_exactly_one(deploy: Callable[..., Deployed]) -> None:
    one = deploy("a", run="clock", rounds={"count": 9}, deploy={"schedule": "* * * * *"})
    run_at_once = one.start_round()  # somebody is impatient: the two do not get in each other's way
    scheduled: Any = eventually(lambda: first_scheduled(one), "the schedule's first flow run has ended")
    no_more(one)
    assert one.ended(run_at_once).is_completed() and scheduled.state.is_completed()
    ended = [run for run in rounds_of(one) if run.state.is_completed()]
    told = sorted(run.state.message.split(",")[0] for run in ended)
    assert told == [f"round {t}: 1 of 1 sites" for t in range(1, len(ended) + 1)]
    assert [manifest.round for manifest in one.rounds()] == list(range(len(ended) + 1))


def rounds_of(one: Deployed) -> list[Any]:
    return [run for run in one.flow_runs() if run.name == "clock next round"]


def first_scheduled(one: Deployed) -> Any:
    ended = (run for run in rounds_of(one) if run.auto_scheduled and run.state.is_final())
    return next(ended, None)


def no_more(one: Deployed) -> None:
    """Pause the schedule, as the UI's switch does, and wait for a flow run that may have begun meanwhile."""
    with one.server.client() as client:
        client.pause_deployment(client.read_deployment_by_name(f"federated-round/{one.federation.run}").id)
    eventually(lambda: not any(run.state.is_running() for run in rounds_of(one)), "no round is running", every=0.5)
