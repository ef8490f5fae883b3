"""Rounds across processes: a real server, a real worker for each site, and what happens when things break."""

import contextlib
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
import yaml

from photon_core.errors import QuorumMissed
from photon_core.rounds import history, run_of
from schemas.federation import Federation
from schemas.load import load_federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PHOTON = Path(sys.executable).parent / "photon"


class Deployed:
    """A federation on the session's server, and its sites' workers as processes of their own."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.federation = load_federation(file)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def photon(self, *arguments: str) -> None:
        subprocess.run([PHOTON, *arguments], check=True, timeout=120)

    def join(self, site: str) -> None:
        with (self.file.parent / f"{site}.log").open("ab") as log:
            command = [PHOTON, "join", str(self.file), "--site", site]
            self.workers[site] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def run(self, **arguments: Any) -> None:
        from flows.federated_round import federated_round

        federated_round(self.federation, deployed=True, **arguments)

    def stop(self) -> None:
        for worker in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@pytest.fixture
def deployed(prefect_server: str, write_federation: Callable[..., Path]) -> Iterator[Callable[..., Deployed]]:
    made = []

    def make(sites: tuple[str, ...], join: tuple[str, ...] | None = None, **sections: Any) -> Deployed:
        federation = Deployed(write_federation(sites, **sections))
        made.append(federation)
        federation.photon("prepare", str(federation.file), "--quiet")
        federation.photon("deploy", str(federation.file))
        for site in sites if join is None else join:
            federation.join(site)
        return federation

    yield make
    for federation in made:
        federation.stop()


def embedded(federation: Federation, rounds: int) -> str:
    """Hash of the model that the same federation reaches in this process."""
    from flows.federated_run import federated_run

    other = Federation.model_validate(federation.model_dump() | {"store": federation.store + "-embedded"})
    federated_run(other, rounds)
    return history(run_of(other))[rounds].model_sha256


def test_a_deployed_round_makes_the_same_model_as_an_embedded_one(deployed: Callable[..., Deployed]):
    four = deployed(("a", "b", "c", "d"), run="four")
    four.run()
    manifest = history(run_of(four.federation))[1]
    assert set(manifest.updates) == set(manifest.evaluations) == {"a", "b", "c", "d"}
    assert manifest.model_sha256 == embedded(four.federation, 1)


def test_a_failed_site_goes_on_after_a_retry_in_the_ui(deployed: Callable[..., Deployed]):
    from prefect.states import Scheduled

    two = deployed(("a", "b"), run="retry", rounds={"deadline": 120})
    broken, whole = damage(two, "b")
    rounds = threading.Thread(target=two.run)
    rounds.start()
    failed = flow_run_of(two, "b", "FAILED")
    assert broken.name in failed.state.message
    broken.write_bytes(whole)
    set_state(failed.id, Scheduled(message="Retry in the UI"))
    rounds.join(120)
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out


def test_a_failed_round_run_again_trains_only_the_failed_site(deployed: Callable[..., Deployed]):
    two = deployed(("a", "b"), run="again", rounds={"deadline": 30})
    broken, whole = damage(two, "b")
    with pytest.raises(QuorumMissed, match="b: .*" + broken.name):
        two.run()
    run = run_of(two.federation)
    before = run.updates(1, "a")
    broken.write_bytes(whole)
    two.run()
    assert run.updates(1, "a") == before
    assert set(history(run)[1].updates) == {"a", "b"}


def test_a_site_that_never_answers_is_left_out_by_name(deployed: Callable[..., Deployed]):
    two = deployed(("a", "b"), join=("a",), run="silent", rounds={"deadline": 45, "quorum": 1})
    two.run()
    manifest = history(run_of(two.federation))[1]
    assert set(manifest.updates) == {"a"}
    assert "not done at the deadline" in manifest.left_out["b"]


def test_killed_trainer_is_trained_again(deployed: Callable[..., Deployed]):
    two = deployed(("a", "b"), run="killed", local={"steps": 400}, rounds={"deadline": 200})
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

    two = deployed(("a", "b"), run="forced", rounds={"quorum": 2})
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


def set_state(flow_run_id: Any, state: Any) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, state, force=True)


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


def test_the_example_federation_is_valid():
    assert yaml.safe_load(Path("examples/federation.yaml").read_text())["sites"]
