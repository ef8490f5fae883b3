"""A site's flow run: a missing deployment, or another version's, is reported at once; a crash with the result."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import PhotonError
from photon_core.evidence.evaluations import commit_evaluation
from photon_core.evidence.events import Log, incidents
from photon_core.run.members import member
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import FileEntry
from schemas.reading.load import load_federation
from tests.conftest import merge
from tests.flows.deployment import Deployed, SessionServer, eventually

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_a_deployment_that_is_missing_or_of_another_version(
    write_federation: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.asking import Asking
    from tasks.remote.present import Present

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="dispatched"))
    asking = Asking("site-round", Present(federation), "a", lambda: {"site": "a", "t": 1}, "1/a", ["round:1"])

    def refused(expected: str) -> None:
        with pytest.raises(PhotonError, match=expected):
            asking.create()

    with get_client(sync_client=True) as client:
        asking.client = client
        refused(r"has no deployment 'site-round/dispatched-a'\. Write: photon deploy FILE")
        apply(plan(federation))
        there = client.read_deployment_by_name("site-round/dispatched-a")
        for tag, who in (("protocol:7", "at the coordinator"), ("other", "where `photon deploy` is run")):
            client.update_deployment(there.id, DeploymentUpdate(tags=[tag]))
            refused(f"has protocol [07], the Photon of the coordinator 1: upgrade Photon {who}")
        client.update_deployment(there.id, DeploymentUpdate(tags=there.tags))
        file = federation.model_dump(mode="json")
        monkeypatch.setattr(asking, "_file", lambda: file | {"zebra": 1})
        refused(r"by another version of Photon: it does not accept these parameters\. Write: photon deploy FILE")


def test_the_same_asked_twice_is_one_flow_run_and_an_edited_file_another(
    write_federation: Callable[..., Path],
) -> None:
    """An edit that does not change the site's work leaves its flow run alone; any other takes its place."""
    from prefect.client.orchestration import get_client

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.asking import Asking
    from tasks.remote.present import Present

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="asked"))
    apply(plan(federation))

    with get_client(sync_client=True) as client:

        def asked(**sections: object) -> Any:
            file = Federation.model_validate(merge(federation.model_dump(), sections))
            asking = Asking(
                "site-round", Present(file), "a", lambda: {"site": "a", "t": 1, "attempt": 1}, "1/a", ["round:1"]
            )
            asking.client = client
            return asking.create()

        first = asked()
        assert asked().id == first.id == asked(rounds={"deadline": 77}, server={"lr": 0.5}).id
        second = asked(local={"optimizer": {"lr": 0.25}})
        assert second.id != first.id and second.parameters["federation"]["local"]["optimizer"]["lr"] == 0.25
        assert client.read_flow_run(first.id).state.is_cancelled()
        assert asked().id not in (first.id, second.id)  # a cancelled one is not found again


def test_a_flow_run_that_no_worker_has_taken_is_replaced_after_an_edit(
    write_federation: Callable[..., Path],
) -> None:
    from prefect import flow

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.dispatch import dispatch_round
    from tasks.remote.present import Present
    from tasks.remote.waiting import Waiting

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="replaced"))
    apply(plan(federation))
    deployed, waiting = Deployed(SessionServer(), federation), Waiting()

    @flow
    def asking() -> None:
        present = Present(federation, follow=True)
        dispatch_round(member(federation, "a"), 1, time.time() + 200, present=present, waiting=waiting)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asking)
        (first,) = eventually(lambda: deployed.flow_runs("site:a"), "it is asked")
        lower = Federation.model_validate(merge(federation.model_dump(), {"local": {"optimizer": {"lr": 0.25}}}))
        apply(plan(lower))
        eventually(lambda: len(deployed.flow_runs("site:a")) == 2, "it is asked with the edited file")
        waiting.close()
        with pytest.raises(PhotonError, match="the round has ended"):
            asked.result()
    second = next(run for run in deployed.flow_runs("site:a") if run.id != first.id)
    assert deployed.state(first).is_cancelled() and not deployed.state(second).is_final()
    assert second.parameters["federation"] == lower.model_dump(mode="json")


def test_an_evaluation_that_crashes_three_times_goes_on_by_itself_and_says_so(
    write_federation: Callable[..., Path],
) -> None:
    from prefect import flow
    from prefect.states import Crashed

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.dispatch import dispatch_evaluation
    from tasks.remote.waiting import Waiting

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="evaluated"))
    apply(plan(federation))
    deployed = Deployed(SessionServer(), federation)
    log = Log(federation.run)
    model = [FileEntry(path="m", sha256="a" * 64, bytes=1)]
    scores = {"loss": 1.0, "perplexity": 2.0, "tokens": 3.0}

    @flow
    def evaluating() -> dict[str, float]:
        return dispatch_evaluation(member(federation, "a"), 1, model, time.time() + 200, Waiting(log))

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(evaluating)
        known: set[Any] = set()

        def asked() -> set[Any]:
            return {run.id for run in deployed.flow_runs("site:a", "round:1")} - known

        for _ in range(3):
            new = eventually(asked, "it is asked to")
            known |= new
            with deployed.server.client() as client:
                client.set_flow_run_state(*new, Crashed(message="killed"), force=True)
        eventually(asked, "it is asked to once more")
        commit_evaluation(run_of(federation), 1, "a", model, scores)
        assert found.result() == scores
    told = ["evaluation: its flow run was Crashed (killed)", "evaluation: it was started again"]
    assert incidents(log.at(1).events()) == {"a": 3 * told}
