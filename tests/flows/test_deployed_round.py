"""Rounds across processes: a real server, a real worker for each site, and what happens when things break."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_core.rounds import history, run_of
from schemas.federation import Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROUNDS = "test-rounds"


class Deployed:
    """A federation on the session's server."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    def run(self, **arguments: Any) -> None:
        from flows.federated_round import federated_round

        federated_round(self.federation, deployed=True, **arguments)

    def start(self) -> Any:
        """A round on a worker of its own. Returns its flow run."""
        from prefect.deployments import run_deployment

        return run_deployment(f"federated-round/{self.federation.run}", timeout=0)


@pytest.fixture(scope="module")
def workers(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
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
def deployed(workers: dict[str, str], prepared: Callable[..., Federation]) -> Callable[..., Deployed]:
    """Prepares and deploys a federation of two sites; a site named `nobody` has no worker."""
    from flows.apply import apply
    from flows.catalogue import plan

    def make(*sites: str, **sections: Any) -> Deployed:
        federation = prepared(sites or ("a", "b"), pools=workers | {"nobody": "test-nobody"}, **sections)
        apply(plan(federation))
        return Deployed(federation)

    return make


def embedded(federation: Federation, rounds: int) -> str:
    """Hash of the model that the same federation reaches in this process."""
    from flows.federated_run import federated_run

    other = Federation.model_validate(federation.model_dump() | {"store": federation.store + "-embedded"})
    federated_run(other, rounds)
    return history(run_of(other))[rounds].model_sha256


def test_a_deployed_round_makes_the_same_model_as_an_embedded_one(deployed: Callable[..., Deployed]):
    two = deployed(run="equal")
    two.run()
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == set(manifest.evaluations) == {"a", "b"}
    assert manifest.model_sha256 == embedded(two.federation, 1)


def test_a_failed_site_goes_on_after_a_retry_in_the_ui(deployed: Callable[..., Deployed]):
    two = deployed(run="retry", rounds={"deadline": 120})
    broken, whole = damage(two, "b")
    rounds = threading.Thread(target=two.run)
    rounds.start()
    failed = flow_run_of(two, "b", "FAILED")
    assert broken.name in failed.state.message
    broken.write_bytes(whole)
    retry_in_the_ui(failed.id)
    rounds.join(120)
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    assert trainings(two, "a") == trainings(two, "b") == 1


def test_a_retry_of_a_failed_round_trains_only_the_failed_site(deployed: Callable[..., Deployed]):
    two = deployed(run="again", rounds={"deadline": 60}, deploy={"pool": ROUNDS})
    broken, whole = damage(two, "b")
    started = two.start()
    failed = ended(started.id)
    assert failed.state.is_failed() and "Left out: b: " in failed.state.message
    assert broken.name in failed.state.message
    run = run_of(two.federation)
    before = run.update_sha256(1, "a", 1)
    broken.write_bytes(whole)
    retry_in_the_ui(started.id)
    assert ended(started.id, since=failed.state).state.is_completed()
    assert run.update_sha256(1, "a", 1) == before
    assert set(history(run)[1].updates) == {"a", "b"}
    assert trainings(two, "a") == trainings(two, "b") == 1


def test_a_site_that_never_answers_is_left_out_by_name(deployed: Callable[..., Deployed]):
    two = deployed("a", "nobody", run="silent", rounds={"deadline": 45, "evaluation_deadline": 20, "quorum": 1})
    two.run()
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == {"a"}
    assert "was not done at the deadline; its flow run: " in manifest.left_out["nobody"]


def test_killed_trainer_is_trained_again(deployed: Callable[..., Deployed]):
    two = deployed(run="killed", local={"steps": 400}, rounds={"deadline": 200})
    killer = threading.Thread(target=kill_trainer_of, args=(two, "b"), daemon=True)
    killer.start()
    two.run()
    killer.join(1)
    assert not killer.is_alive()
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == {"a", "b"}


def test_a_forced_rerun_is_a_new_attempt_beside_the_old(deployed: Callable[..., Deployed]):
    from flows.federated_run import federated_run
    from flows.rerun_site import rerun_site

    two = deployed(run="forced", rounds={"quorum": 2})
    federated_run(two.federation, 1, deployed=True)
    run = run_of(two.federation)
    from flows.site_round import site_round

    site_round(two.federation, "a", 2)
    first = run.update_sha256(2, "a", 1)
    rerun_site(two.federation, "a", 2, force=True)
    assert [update.attempt for update in run.updates(2, "a")] == [1, 2]
    assert run.update_sha256(2, "a", 1) == first
    federated_run(two.federation, 1, deployed=True)
    assert history(run)[2].updates["a"].attempt == 2


def test_a_site_uploads_the_model_that_the_run_starts_from(deployed: Callable[..., Deployed], tmp_path: Path):
    from flows.start import start_at_site
    from photon_core.start import site_start
    from photon_core.training.initial import initial_model

    (tmp_path / "held").mkdir()
    start = {"site": "b", "checkpoint": str(tmp_path / "held")}
    two = deployed(run="held", start=start)
    initial_model(two.federation, tmp_path / "held")
    start_at_site(two.federation, deployed=True)
    uploaded = site_start(run_of(two.federation), "b")
    assert uploaded is not None and uploaded.site == "b"


def damage(deployed: Deployed, site: str) -> tuple[Path, bytes]:
    """Flip a byte of the site's first shard. Returns the shard and what it was."""
    folder = Path(deployed.federation.site(site).state_dir or "") / "data" / "text" / "train"
    shard = next(folder.glob("shard*"))
    whole = shard.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return shard, whole


def flow_run_of(deployed: Deployed, site: str, state: str, seconds: float = 90) -> Any:
    """The site's flow run, once it is in this state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    limit = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run:{deployed.federation.run}", f"site:{site}"]))
        while time.monotonic() < limit:
            for flow_run in client.read_flow_runs(flow_run_filter=mine):
                if flow_run.state_type == state:
                    return flow_run
            time.sleep(0.5)
    raise AssertionError(f"no flow run of {site} was {state} within {seconds} s")


def retry_in_the_ui(flow_run_id: Any) -> None:
    """The request that the UI makes: not forced, so the server's rules for retries hold."""
    from prefect.client.orchestration import get_client
    from prefect.states import AwaitingRetry

    with get_client(sync_client=True) as client:
        done = client.set_flow_run_state(flow_run_id, AwaitingRetry(message="Retry from the UI"), force=False)
    assert done.status == "ACCEPT", done


def ended(flow_run_id: Any, since: Any = None, seconds: float = 240) -> Any:
    """The flow run, once it has ended after the state `since`."""
    from prefect.client.orchestration import get_client

    limit = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while time.monotonic() < limit:
            flow_run = client.read_flow_run(flow_run_id)
            if flow_run.state.is_final() and (since is None or flow_run.state.id != since.id):
                return flow_run
            time.sleep(0.5)
    raise AssertionError(f"the flow run did not end within {seconds} s")


def trainings(deployed: Deployed, site: str) -> int:
    """How many updates the site has made for round 1, committed or not."""
    return run_of(deployed.federation).next_attempt(1, site) - 1


def kill_trainer_of(deployed: Deployed, site: str) -> None:
    """SIGKILL the first child process that writes to the site's training log."""
    log = Path(deployed.federation.site(site).state_dir or "") / "log" / "training.log"
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and (process / "fd" / "1").resolve() == log.resolve():
                    os.kill(int(process.name), signal.SIGKILL)
                    return
            except OSError:
                continue
        time.sleep(0.01)
    raise AssertionError("no trainer was seen")
