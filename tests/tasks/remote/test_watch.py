"""What a round does about a site's flow run, look by look."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Completed, Failed, Pending, Running, Scheduled

from schemas.federation import Federation
from schemas.reading.load import load_federation
from tests.conftest import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
RUNS = count(1)


class Rounds:
    """Rounds of one run that request the same of site a, each with its own file."""

    def __init__(self, client: Any, federation: Federation) -> None:
        self.client, self.federation = client, federation
        self.log = SimpleNamespace(warning=lambda *_: None)

    def watch(self, t: int = 1, **sections: object) -> Any:
        from tasks.remote.asking import Asking
        from tasks.remote.present import Present
        from tasks.remote.watch import Watch

        file = Federation.model_validate(merge(self.federation.model_dump(), sections))
        asking = Asking(
            "site-round", Present(file), "a", lambda: {"site": "a", "t": t, "attempt": 1}, f"{t}/a", [f"round:{t}"]
        )
        asking.client = self.client
        return Watch(asking, 90.0, self.log)

    def set(self, watch: Any, state: Any) -> None:
        self.client.set_flow_run_state(watch.run.id, state, force=True)


@pytest.fixture
def rounds(write_federation: Callable[..., Path]) -> Iterator[Rounds]:
    from prefect.client.orchestration import get_client

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    name = f"watched-{next(RUNS)}"
    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run=name))
    apply(plan(federation))
    with get_client(sync_client=True) as client:
        yield Rounds(client, federation)


def test_two_rounds_with_different_files_do_not_replace_each_others_flow_runs_for_ever(rounds: Rounds) -> None:
    """`photon rerun` keeps the file that it began with, while the round follows an edit; no worker runs."""
    for t, section in enumerate(({"rounds": {"grace": 77}}, {"local": {"optimizer": {"lr": 0.25}}}), 1):
        ours, theirs = rounds.watch(t), rounds.watch(t, **section)
        for _ in range(4):
            ours.look(rounds.client)
            theirs.look(rounds.client)
        assert len(ours.asks.runs()) == 2 and ours.run.id == theirs.run.id
        assert not ours.failed and not theirs.failed
        rounds.set(theirs, Completed())  # with the other file: now ours is requested
        for _ in range(3):
            ours.look(rounds.client)
        assert len(ours.asks.runs()) == 3 and ours.run.id != theirs.run.id


def test_a_flow_run_that_is_completed_in_vain_counts_as_failed_for_the_grace(rounds: Rounds) -> None:
    """A site that commits no update, or what is none, and says Completed."""
    watch = rounds.watch()
    watch.look(rounds.client)
    rounds.set(watch, Completed())
    watch.look(rounds.client)
    assert not watch.failed  # its update may have come since the store was read
    for _ in range(2):
        watch.look(rounds.client)
        assert watch.failed == "Completed (it committed nothing that counts)"
    assert list(map(str, watch.notes)) == [f"its flow run was {watch.failed}"] and len(watch.asks.runs()) == 1
    rounds.set(watch, Scheduled())
    watch.look(rounds.client)
    assert not watch.failed and str(watch.notes[-1]) == "it was started again"


def test_a_failure_that_a_person_retried_between_two_looks_is_noted(rounds: Rounds) -> None:
    watch = rounds.watch()
    watch.look(rounds.client)
    for state in (Running(), Failed(message="no space"), Scheduled(), Running()):
        rounds.set(watch, state)
    for _ in range(2):
        watch.look(rounds.client)
        assert list(map(str, watch.notes)) == ["its flow run was Failed (no space)", "it was started again"]
    rounds.set(watch, Failed(message="no space"))  # as before: seen, so not missed
    watch.look(rounds.client)
    assert watch.failed and len(watch.notes) == 3


def test_a_server_whose_clock_is_behind_ends_no_flow_run_that_is_about_to_start(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a flow run is Pending is measured by this machine's clock alone."""
    watch = rounds.watch()
    watch.look(rounds.client)
    rounds.set(watch, Pending())
    ahead = time.time() + 3600
    monkeypatch.setattr("tasks.remote.watch.time.time", lambda: ahead)
    for _ in range(2):
        watch.look(rounds.client)
        assert watch.text == "Pending" and not watch.notes
