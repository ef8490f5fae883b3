"""The failure table: rounds of a deployed federation that are cancelled, killed and cut off from their server."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs import commands
from tests.federations import attempts_of
from tests.flows.deployment import (
    Deployed,
    Workers,
    aggregating,
    crashed_for_good,
    eventually,
    go_on,
    recovered,
    shared_memory_of,
)
from tests.flows.planted import HOSTILE, deploy_with_secrets, found_in, kept
from tests.processes import alive
from tests.s3_server import FaultProxy, Request, hostile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Deploy = Callable[..., Deployed]
SLOW = {"steps": 1500, "checkpoint_steps": 50}  # some seconds, so that a training is caught at work


def test_a_round_cancelled_and_then_killed_three_times(deploy: Deploy) -> None:
    two = deploy("a", "b", run="killed", local=SLOW, rounds={"count": 2})
    cancelled(two)
    flow_run = two.start_round()
    kill_before_aggregation(two, flow_run)
    committed = {site: update_of(two, site) for site in "ab"}
    kill_while_aggregating(two, flow_run)
    kill_after_commit(two, flow_run)
    assert {site: update_of(two, site) for site in "ab"} == committed  # nothing committed was trained again
    manifest = two.rounds()[-1]
    assert manifest.round == 1, "a retry of a round makes that round, not the next one"
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    for site in "ab":
        assert any("started again" in note for note in manifest.incidents[site])  # after the cancellation
        assert manifest.updates[site].attempt == 1 and manifest.updates[site].steps == SLOW["steps"]
    assert "started again" in two.table() and "started again" in two.state(flow_run).message


def cancelled(two: Deployed) -> None:
    """Cancel a round by the UI's API call: in a while nothing of it is left, anywhere."""
    flow_run = two.start_round()
    trainers = both_train(two, held=True)
    memory = {file for pid in trainers for file in shared_memory_of(pid)}
    family = two.family()
    assert trainers < family and len(family) >= 5  # the round, two sites, two trainers
    clock = time.monotonic()
    two.cancel(flow_run)
    assert two.ended(flow_run).name == "Cancelled"
    go_on(trainers)  # held until now: on a slow machine a training could end before it is cancelled
    assert [two.ended(two.site_run(site, 1)).name for site in "ab"] == ["Cancelled", "Cancelled"]
    eventually(lambda: not any(map(alive, family)) and not two.family(), "no process is left")
    assert memory
    eventually(lambda: not memory & shared_memory(), "no shared memory is left", seconds=20)
    assert [manifest.round for manifest in two.rounds()] == [0]
    recovered("a cancelled round is gone", clock)


def both_train(two: Deployed, held: bool = False) -> set[int]:
    """The sites' trainers, while both are at work: the first is stopped until the second is there. Held, both stay
    stopped."""
    trainers = []
    try:
        for site in "ab":
            trainers.append(two.trainer(site))
            os.kill(trainers[-1], signal.SIGSTOP)
    finally:
        if not held:
            go_on(trainers)
    return set(trainers)


def kill_before_aggregation(two: Deployed, flow_run: Any) -> None:
    two.trainer("a")
    clock = kill(two.process_of(flow_run))
    crashed_for_good(two, flow_run, 1)
    for site in "ab":
        eventually(lambda site=site: two.run.update(1, site, 1), f"{site} commits though nobody waits for it")
    two.retry(flow_run)
    pid = two.process_of(flow_run)
    recovered("the round's process killed before aggregation, retried", clock)
    eventually(lambda: aggregating(two), "the round aggregates", every=0.001)
    os.kill(pid, signal.SIGKILL)


def kill_while_aggregating(two: Deployed, flow_run: Any) -> None:
    """Called when that has been done: as soon as the first file of the new model was begun."""
    clock = time.monotonic()
    assert len(two.rounds()) == 1
    crashed_for_good(two, flow_run, 2)
    two.retry(flow_run)
    pid = two.process_of(flow_run)
    committed = Path(two.federation.store) / two.run.round_dir(1) / "round.json"
    eventually(committed.exists, "the round is committed", every=0.001)
    os.kill(pid, signal.SIGKILL)
    recovered("the round's process killed while aggregating, retried", clock)


def kill_after_commit(two: Deployed, flow_run: Any) -> None:
    """Called when that has been done."""
    clock = time.monotonic()
    before = two.run.round(1)
    crashed_for_good(two, flow_run, 3)
    two.retry(flow_run)
    assert two.ended(flow_run).is_completed()
    assert two.run.round(1) == before
    recovered("the round's process killed after its commit, retried", clock)


def test_the_server_is_stopped_for_20_seconds(breakable: Workers, deploy: Deploy) -> None:
    # while the server is unreachable, no heartbeat arrives: zombie_after allows for it
    two = deploy("a", "b", run="outage", local=SLOW, rounds={"count": 1}, deploy={"zombie_after": 300})
    flow_run = two.start_round()
    both_train(two)
    breakable.server.stop()
    clock = time.monotonic()
    time.sleep(20)
    breakable.server.start()
    assert two.ended(flow_run).is_completed()
    recovered("the server stopped for 20 s", clock)
    manifest = two.rounds()[-1]
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    for site in "ab":
        assert any("not answer" in note for note in manifest.incidents[site])
        assert manifest.updates[site].attempt == 1 and manifest.updates[site].steps == SLOW["steps"]
    assert "not answer" in two.state(flow_run).message and "not answer" in two.table()


def test_two_rounds_at_once_and_s3_cut_and_away_for_20_seconds(
    deploy: Deploy, s3_bucket: str, s3_proxy: FaultProxy
) -> None:
    storage = {"store": f"s3://{s3_bucket}/x", "storage": {"endpoint_url": s3_proxy.url}}
    two = deploy("a", "b", run="race", local=SLOW, rounds={"count": 1}, **storage)
    since: list[float] = []

    def cut_then_away(request: Request) -> Any:
        """The first upload of a shard of an update breaks off in the middle, and everything fails from then on."""
        if request.method != "PUT" or "/sites/" not in request.path or not request.path.endswith(".safetensors"):
            return None
        since.append(time.monotonic())
        s3_proxy.away_for(20.0, "503", "reset")
        return ("cut", 3000)

    s3_proxy.fault = cut_then_away
    racing = [two.start_round(), two.start_round("federated-run", rounds=1)]
    states = [two.ended(flow_run) for flow_run in racing]
    recovered("S3 cut in an upload, then away for 20 s", since[0])
    assert len(s3_proxy.broken) >= 4

    assert sorted(state.name for state in states) == ["Completed", "Failed"]
    lost = next(state for state in states if state.is_failed())
    assert "StoreConflict" in lost.message or "committed" in lost.message
    (manifest,) = two.rounds()[1:]
    assert set(manifest.updates) == {"a", "b"} and not manifest.left_out
    for site in "ab":
        assert two.site_run(site, 1).run_count == 1  # both rounds waited for the same training
        assert manifest.updates[site].attempt == 1
    notes = "; ".join(note for site in "ab" for note in manifest.incidents.get(site, []))
    assert "the store was unreachable" in notes and "HTTP 503" in notes
    won = next(state for state in states if state.is_completed())
    assert "the store was unreachable" in two.table()
    assert "the store was unreachable" in won.message or "1 of 1" in won.message


def test_the_commands_of_the_page_do_what_it_says(breakable: Workers, deploy: Deploy, tmp_path: Path) -> None:
    """docs/failures.md, from its own text: deployed, round 2 for its round 7."""
    one = deploy("berlin", run="notes", rounds={"count": 2})
    environment = breakable.server.environment()

    def run(command: str) -> str:
        done = commands.run(commands.adapted(command, {"7": "2"}), tmp_path / "fed", environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    status, next_round, rerun, forced = commands.commands("docs/failures.md")
    run(next_round)
    eventually(lambda: one.run.round(1), "round 1 is committed")
    assert json.loads(run(f"{status} --json"))["committed"] == 1
    assert "berlin: attempt 1 for round 2 is committed" in run(rerun)
    first = one.run.update_sha256(2, "berlin", 1)
    assert "berlin: attempt 2 for round 2 is committed" in run(forced)
    assert one.run.update_sha256(2, "berlin", 1) == first


def shared_memory() -> set[tuple[str, int]]:
    """Names and inodes of all that there is."""
    return {(path.name, path.stat().st_ino) for path in Path("/dev/shm").iterdir()}


def kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def update_of(two: Deployed, site: str) -> Any:
    """The site's committed updates, and when its training was finished."""
    state = two.folder(site) / "state"
    finished = [path.stat().st_mtime_ns for path in state.glob("*/trained.json")]
    return attempts_of(two.run, 1, site), two.run.update_sha256(1, site, 1), finished


def test_no_secret_comes_into_store_server_logs_or_report(
    breakable: Workers, s3_proxy: FaultProxy, s3_bucket: str, tmp_path: Path
) -> None:
    """Point 7: they are planted in the environment, a profile, blocks, and a hostile server's error texts."""
    server = breakable.server
    two = deploy_with_secrets(server, tmp_path / "fed", s3_bucket, s3_proxy.url)
    s3_proxy.answer = hostile(*HOSTILE)
    s3_proxy.fault = lambda request: "answer" if request.method == "PUT" and "/sites/b/" in request.path else None
    first = two.ended(two.start_round())
    assert first.is_completed() and "Excluded: b" in first.message and "HTTP 400" in first.message
    assert set(two.rounds()[1].updates) == {"a"}
    s3_proxy.fault = lambda _: None
    looked, bad = set(), []
    for name, data in kept(two, server.home, tmp_path, s3_bucket):
        looked.add(name.rpartition("/")[2])
        bad += found_in(name, data)
    assert {"run.json", "round.json", "update.json", "report.html", "prefect.db", "worker-far.log"} <= looked
    assert bad == []
