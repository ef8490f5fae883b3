"""Rounds across processes: a real server, a real worker for each site, and what happens when things break."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_core.run.history import history
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.provenance import federation_sha256
from photon_core.run.run import run_of
from photon_core.update.settings import work_sha256
from schemas.federation import Federation
from schemas.protocol import PROTOCOL
from tests.conftest import merge
from tests.federations import attempts_of, updates_of
from tests.flows.deployment import Deployed, SessionServer, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_server")]
ROUNDS = "test-rounds"
Deploy = Callable[..., Deployed]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A worker process for each of two sites, and one for rounds. Yields site -> its work pool."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from photon_cli.join import WORKER

    pools = {"a": "test-a", "b": "test-b"}
    started = []
    with get_client(sync_client=True) as client:
        for pool in (*pools.values(), ROUNDS, "test-nobody"):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    with (tmp_path_factory.mktemp("workers") / "log").open("ab") as log:
        for pool in (*pools.values(), ROUNDS):
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
            started.append(
                subprocess.Popen(
                    command, env={**os.environ, **WORKER}, stdout=log, stderr=log, start_new_session=True
                )
            )
    yield pools
    for worker in started:
        worker.terminate()
    for worker in started:
        worker.wait(120)


@pytest.fixture
def deployed(workers: dict[str, str], prepared: Callable[..., Federation]) -> Deploy:
    """Prepares and deploys a federation of two sites; a site named `nobody` has no worker."""
    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    def make(*sites: str, **sections: Any) -> Deployed:
        federation = prepared(sites or ("a", "b"), pools=workers | {"nobody": "test-nobody"}, **sections)
        apply(plan(federation))
        return Deployed(SessionServer(), federation)

    return make


def run_round(two: Deployed) -> None:
    """A round whose flow runs in this process."""
    from flows.federated_round import federated_round

    federated_round(two.federation, deployed=True)


def embedded(federation: Federation, rounds: int) -> str:
    """Hash of the model that the same federation reaches in this process."""
    from flows.federated_run import federated_run

    other = Federation.model_validate(federation.model_dump() | {"store": federation.store + "-embedded"})
    federated_run(other, rounds)
    return history(run_of(other))[rounds].model_sha256


def test_a_deployed_round_makes_the_same_model_as_an_embedded_one(deployed: Deploy):
    two = deployed(run="equal")
    run_round(two)
    manifest = two.rounds()[1]
    assert set(manifest.updates) == set(manifest.evaluations) == {"a", "b"}
    assert manifest.model_sha256 == embedded(two.federation, 1)


def test_a_failed_site_goes_on_after_a_retry_in_the_ui(deployed: Deploy):
    two = deployed(run="retry", rounds={"deadline": 250})
    damaged = two.damage("b")
    rounds = threading.Thread(target=run_round, args=(two,))
    rounds.start()
    failed = two.site_run("b", 1, "FAILED")
    assert damaged.file.name in failed.state.message
    damaged.mend()
    two.retry(failed)
    rounds.join(250)
    manifest = two.rounds()[1]
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    assert trainings(two, "a") == trainings(two, "b") == 1


def test_a_retry_of_a_failed_round_trains_only_the_failed_site(deployed: Deploy):
    two = deployed(run="again", rounds={"deadline": 75}, deploy={"pool": ROUNDS})
    damaged = two.damage("b")
    started = two.start_round()
    failed = two.ended(started)
    assert failed.is_failed() and "Excluded: b: " in failed.message
    assert damaged.file.name in failed.message
    before = two.run.update_sha256(1, "a", 1)
    damaged.mend()
    two.retry(started)
    assert two.ended(started, since=failed).is_completed()
    assert two.run.update_sha256(1, "a", 1) == before
    assert set(two.rounds()[1].updates) == {"a", "b"}
    assert trainings(two, "a") == trainings(two, "b") == 1
    goes_back_in_the_ui(two)


def goes_back_in_the_ui(two: Deployed) -> None:
    """The deployment `rollback` commits round 2, which is round 0 again, and names its flow run."""
    started = two.start_round("rollback", to=0, reason="site b was broken")
    ended = two.ended(started)
    assert ended.is_completed() and ended.message.startswith("round 2 is a rollback to round 0, requested by ")
    first, _, back = two.rounds()
    assert (back.model, back.to, back.reason) == (first.model, 0, "site b was broken")
    assert back.who.endswith(f"Prefect flow run {started.id}")


def edited(two: Deployed, **sections: Any) -> Deployed:
    """The file with other sections, deployed."""
    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    federation = Federation.model_validate(merge(two.federation.model_dump(mode="json"), sections))
    apply(plan(federation))
    return Deployed(two.server, federation)


def test_an_edited_file_mends_lr_source_state_dir_and_start_checkpoint(deployed: Deploy, tmp_path: Path):
    """Each is wrong; each is fixed by file, deploy and a retry in the UI, while one round waits."""
    from photon_core.model.init import initial_model

    start = {"site": "b", "checkpoint": str(tmp_path / "nothing")}
    bad = deployed(run="fixed", start=start, local={"optimizer": {"lr": 1e30}}, deploy={"pool": ROUNDS})
    a, b = (site.model_dump(mode="json") for site in bad.federation.sites)
    source = {**b["streams"][0], "source": str(tmp_path / "nothing.jsonl")}
    wrong = edited(bad, sites=[a, {**b, "state_dir": str(tmp_path / "elsewhere"), "streams": [source]}])
    started = wrong.start_round()

    failed = wrong.found("b start", "FAILED")
    initial_model(bad.federation, folder(tmp_path / "held"))
    begun = edited(wrong, start={"site": "b", "checkpoint": str(tmp_path / "held")})
    begun.retry(failed)

    prepared = begun.start_flow("prepare-site", "fixed-b")
    diverged, unprepared = begun.site_run("a", 1, "FAILED"), begun.site_run("b", 1, "FAILED")
    assert "diverged" in diverged.state.message and begun.ended(prepared).is_failed()
    told = eventually(lambda: names_both(begun.state(started).message or ""), "the round names whom it waits for")
    assert told.startswith("waits until 20") and " UTC for a retry of the failed flow runs" in told
    mended = edited(begun, sites=[a, b], local={"optimizer": {"lr": 1e-3}})
    since = begun.state(prepared)
    mended.retry(prepared)
    assert mended.ended(prepared, since=since).is_completed()
    mended.retry(diverged)
    mended.retry(unprepared)
    done = mended.ended(started)
    assert done.is_completed(), done
    first, manifest = mended.rounds()
    assert first.start is not None and first.start.kind == "site"
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    assert manifest.federation_sha256 == federation_sha256(mended.federation)
    for site, run in (("a", diverged), ("b", unprepared)):
        update = updates_of(mended.run, 1, site)[site]
        assert update.work == work_sha256(mended.federation) and update.protocol == PROTOCOL
        assert any("the file that was deployed after" in note for note in manifest.incidents[site])
        with mended.server.client() as client:
            shown = client.read_flow_run(run.id)
        assert shown.parameters["federation"] == mended.federation.model_dump(mode="json")
        assert "the file that was deployed after" in shown.state.message


def test_an_update_of_other_settings_is_made_again_when_a_failed_round_is_retried(deployed: Deploy):
    """Noise is turned on between two tries: the site that committed without it is asked again, not excluded."""
    from flows.site import site_round
    from tasks.coordinator import open_run
    from tasks.runtime import runtime_of

    two = deployed(run="noised", deploy={"pool": ROUNDS})
    with runtime_of(two.federation) as runtime:
        open_run(runtime, two.federation)
    site_round(two.federation, "a", 1)
    plain = two.run.update_sha256(1, "a", 1)
    started = edited(two, rounds={"deadline": 1}).start_round()
    failed = two.ended(started)
    assert failed.is_failed() and "Excluded: b: " in failed.message
    other = edited(two, seed=4)
    other.retry(started)
    refused = other.ended(started, since=failed)
    assert refused.is_failed() and "seed is 4, but the run was started with 3: restore it" in refused.message
    noisy = edited(two, update={"clip_norm": 1.0, "noise_multiplier": 0.01})
    noisy.retry(started)
    done = noisy.ended(started, since=refused)
    assert done.is_completed() and "it uses the file that was deployed after" in done.message
    manifest = noisy.rounds()[1]
    assert {site: ref.attempt for site, ref in manifest.updates.items()} == {"a": 2, "b": 1}
    assert [update.noise_multiplier for update in attempts_of(noisy.run, 1, "a")] == [0.0, 0.01]
    assert any("was made with update.noise_multiplier 0, but the" in note for note in manifest.incidents["a"])
    assert noisy.run.update_sha256(1, "a", 1) == plain


def test_a_site_that_has_failed_is_waited_for_during_grace_once_the_quorum_is_met(deployed: Deploy):
    from flows.federated_round import federated_round

    two = deployed(run="grace", rounds={"quorum": 1, "grace": 4})
    damaged = two.damage("b")
    state = federated_round(two.federation, deployed=True, return_state=True)
    assert state.is_completed() and "(rounds.grace) for a retry of b" in state.message
    manifest = two.rounds()[1]
    assert set(manifest.updates) == {"a"}
    assert damaged.file.name in manifest.left_out["b"] and "(rounds.grace)" in manifest.left_out["b"]
    failed = two.site_run("b", 1, "FAILED")
    two.retry(failed)  # too late: it reports that, and works for nobody
    assert "round 1 was committed without site 'b'" in two.ended(failed, since=failed.state).message


def names_both(message: str) -> str:
    return message if "a: Failed" in message and "b: Failed" in message else ""


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_site_that_never_answers_is_left_out_by_name(deployed: Deploy):
    two = deployed("a", "nobody", run="mute", rounds={"deadline": 60, "evaluation_deadline": 20, "quorum": 1})
    run_round(two)
    manifest = two.rounds()[1]
    assert set(manifest.updates) == {"a"}
    assert "was not finished at the deadline; its flow run: " in manifest.left_out["nobody"]


def test_a_forced_rerun_is_a_new_attempt_beside_the_old(deployed: Deploy):
    from flows.federated_run import federated_run
    from flows.rerun_site import rerun_site
    from flows.site import site_round

    two = deployed(run="forced", rounds={"quorum": 2})
    federated_run(two.federation, 1, deployed=True)
    run = two.run
    site_round(two.federation, "a", 2)
    first = run.update_sha256(2, "a", 1)
    rerun_site(two.federation, "a", 2, force=True)
    assert [update.attempt for update in attempts_of(run, 2, "a")] == [1, 2]
    assert run.update_sha256(2, "a", 1) == first
    federated_run(two.federation, 1, deployed=True)
    assert two.rounds()[2].updates["a"].attempt == 2


def test_a_site_uploads_the_model_that_the_run_starts_from(deployed: Callable[..., Deployed], tmp_path: Path):
    from flows.start import start_at_site
    from photon_core.model.init import initial_model
    from photon_core.run.start import site_start
    from tasks.runtime import runtime_of

    (tmp_path / "held").mkdir()
    start = {"site": "b", "checkpoint": str(tmp_path / "held")}
    two = deployed(run="held", start=start)
    initial_model(two.federation, tmp_path / "held")
    with runtime_of(two.federation) as runtime:
        start_at_site(runtime, two.federation, deployed=True)
    uploaded = site_start(two.run, "b")
    assert uploaded is not None and uploaded.site == "b"


def trainings(two: Deployed, site: str) -> int:
    """How many updates the site has made for round 1, committed or not."""
    attempts = two.run.children(Place(PlaceKind.SITE, two.run.run, 1, site), PlaceKind.ATTEMPT)
    return max((place.attempt for place in attempts), default=0)
