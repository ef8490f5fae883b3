"""Whole runs through the real parts: same inputs same model, left-out sites named, nothing done twice."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import QuorumMissed, StoreConflict
from photon_core.evidence.events import Kind
from photon_core.evidence.summary import summary
from photon_core.hashing import sha256_file
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import view_of
from tests.conftest import merge
from tests.federations import attempts_of, updates_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def run(federation: Federation, rounds: int | None = None) -> list[RoundManifest]:
    from flows.federated_run import federated_run

    federated_run(federation, rounds)
    return history(run_of(federation))


def opened(federation: Federation) -> None:
    from tasks.coordinator import open_run
    from tasks.runtime import runtime_of

    with runtime_of(federation) as runtime:
        open_run(runtime, federation)


def changed(federation: Federation, **changes: Any) -> Federation:
    return Federation.model_validate(federation.model_dump() | changes)


def test_same_federation_same_model_whatever_the_order(prepared: Callable[..., Federation]):
    federation = prepared(("a", "b", "c", "d"))
    first = run(federation)
    assert [manifest.round for manifest in first] == [0, 1, 2]
    assert all(
        set(manifest.updates) == set(manifest.evaluations) == {"a", "b", "c", "d"} for manifest in first[1:]
    )
    assert first[2].metrics["perplexity"] < first[1].metrics["perplexity"]

    again = run(changed(federation, store=federation.store + "-again"))
    other_order = run(changed(federation, store=federation.store + "-order", sites=federation.sites[::-1]))
    assert first[2].model_sha256 == again[2].model_sha256 == other_order[2].model_sha256


def test_four_sites_with_the_same_data_equal_one_site(prepared: Callable[..., Federation]):
    four = prepared(("a", "b", "c", "d"), folder="four")
    one = prepared(("a",), folder="one")
    sites = [
        site.model_copy(update={"streams": one.sites[0].streams, "state_dir": f"{four.store}-{site.name}"})
        for site in four.sites
    ]
    four = changed(four, sites=[site.model_dump() for site in sites])
    from photon_core.data.prepare import prepare_site

    for site in four.sites:
        prepare_site(view_of(four, site.name))
    assert run(four)[2].model_sha256 == run(one)[2].model_sha256


def test_a_committed_round_and_a_committed_update_are_not_done_again(prepared: Callable[..., Federation]):
    from flows.federated_round import federated_round

    federation = prepared()
    first = run(federation, rounds=1)
    assert run(federation, rounds=1)[:2] == first
    store = run_of(federation).store
    folders = [f"tiny/rounds/{t:06d}/sites/{site}" for t in (1, 2) for site in "ab"]
    assert all([name for name in store.ls(folder) if name.isdigit()] == ["0001"] for folder in folders)
    assert len(run(federation)) == 3  # the count is reached: nothing more
    state = federated_round(federation, return_state=True)
    assert state.is_completed()
    assert state.message == "all 2 rounds are committed. To continue, raise rounds.count"


def test_an_update_of_other_settings_does_not_count_after_an_edit_of_the_file(prepared: Callable[..., Federation]):
    """An edit of what does not change the work costs nothing; the same file again, and its update counts again."""
    from flows.site import site_round

    federation = prepared(rounds={"count": 1})
    opened(federation)
    site_round(federation, "a", 1)
    faster = changed(federation, local=merge(federation.local.model_dump(), {"optimizer": {"lr": 1e-3}}))
    site_round(faster, "a", 1)
    other = changed(federation, server=merge(federation.server.model_dump(), {"lr": 0.5}), data=federation.data)
    assert run(other)[1].updates["a"].attempt == 1
    store = run_of(federation)
    first, second = attempts_of(store, 1, "a")
    assert (first.attempt, second.attempt) == (1, 2) and first.work != second.work


def test_raising_the_count_bends_no_schedule_that_has_begun(prepared: Callable[..., Federation]):
    """Point 10: two rounds more, and every step to come has the learning rate that it would have had."""
    schedules = {
        "local": {"schedule": {"warmup_steps": None, "total_steps": None}},
        "server": {"schedule": {"name": "cosine"}},
    }
    two = prepared(**schedules)
    run(two)
    longer = run(changed(two, rounds=two.rounds.model_dump() | {"count": 4}))
    ends = {
        "local": {"schedule": {"warmup_steps": 1, "total_steps": 6}},
        "server": {"schedule": {"name": "cosine", "total_rounds": 2}},
    }
    spelt = run(prepared(folder="spelt", rounds={"count": 4}, **ends))
    assert [r.model_sha256 for r in longer] == [r.model_sha256 for r in spelt]
    assert (
        [r.server["lr"] for r in longer[1:]]
        == [r.server["lr"] for r in spelt[1:]]
        == pytest.approx([1, 0.55, 0.1, 0.1])
    )


def test_many_sites_are_aggregated_by_regions(prepared: Callable[..., Federation]):
    from photon_core.aggregation.aggregate import aggregate
    from tasks.runtime import runtime

    federation = prepared(
        ("a", "b", "c"), rounds={"count": 1, "quorum": 2}, aggregation={"tree_above": 2, "fan_out": 2}
    )
    steps: list[str] = []
    with runtime(lambda event: steps.append(event.step[0]) if event.kind is Kind.STEP_FINISHED else None):
        manifest = run(federation)[1]
    assert {f"{verb} region {n}" for verb in ("average", "compare") for n in (1, 2)} <= set(steps)
    assert [path.split("/")[4] for path in manifest.partials] == ["0001", "0002"]
    store = run_of(federation)
    flat = aggregate(store, 1, updates_of(store, 1, *"abc"), federation.server)
    assert flat.weights == {site: ref.weight for site, ref in manifest.updates.items()}
    norms = {name: value for name, value in flat.norms.items() if not name.startswith("cosine_pair/")}
    assert {name: manifest.metrics[name] for name in norms} == pytest.approx(norms, rel=1e-4, abs=1e-6)


def test_what_goes_wrong_at_sites_is_told(prepared: Callable[..., Federation]):
    """One is excluded; another committed before its shard went bad; the validation of a third is killed once, and
    retried although the word cancelled, here the run's name, is in the error's text."""
    from flows.site import site_round

    federation = prepared(("killed", "corrupt", "late"), run="cancelled-run", rounds={"count": 1, "quorum": 2})
    opened(federation)
    site_round(federation, "late", 1)
    shards = {site: damage(federation, site) for site in ("corrupt", "late")}
    pipe = held(federation, "killed")
    threading.Thread(target=kill_held, args=(federation, "killed", pipe), daemon=True).start()
    manifest = run(federation)[1]
    assert set(manifest.updates) == {"killed", "late"} and set(manifest.left_out) == {"corrupt"}
    assert shards["corrupt"] in manifest.left_out["corrupt"]
    assert set(manifest.incidents) == {"killed", "late"}
    assert "validation was started 2 times" in manifest.incidents["killed"]
    (late,) = manifest.incidents["late"]
    assert shards["late"] in late and late.endswith("its update was committed nevertheless")


def damage(federation: Federation, site: str) -> str:
    """Flip a bit of one of the site's shards. Returns its name."""
    shard = next(view_of(federation, site).split_dir("text", "train").glob("shard*.zstd"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return shard.name


def test_a_first_round_that_blows_up_is_applied_again(prepared: Callable[..., Federation]):
    """No round came before it: its loss is held against the first model's, as training found it."""
    server = {"lr": 300, "guard": {"lr_factor": 0.01}}
    federation = prepared(("a",), run="blown-up", rounds={"count": 1}, server=server)
    _, manifest = run(federation)
    (note,) = manifest.guard
    assert "the validation loss is" in note and "retried with server.lr 3 (was 300)" in note
    assert manifest.server["lr"] == 3
    assert manifest.metrics["loss"] < manifest.updates["a"].metrics["first_loss"]
    assert "apply again" in task_names("blown-up", {"apply again"})


def test_quorum_missed_names_every_reason_and_commits_nothing(prepared: Callable[..., Federation]):
    federation = prepared(("a", "b"), data={"min_train_tokens": 10**9})
    with pytest.raises(QuorumMissed, match=r"0 of 2 .*quorum is 2.*a: validate.*b: validate"):
        run(federation)
    assert run_of(federation).latest() == 0


def test_a_site_that_never_ends_is_left_out_at_the_deadline(prepared: Callable[..., Federation]):
    federation = prepared(("a", "b"), rounds={"count": 1, "quorum": 1, "deadline": 20})
    held(federation, "b")
    manifest = run(federation)[1]
    assert set(manifest.updates) == {"a"}
    assert "deadline of 20 s" in manifest.left_out["b"]


def test_a_site_whose_process_is_killed_three_times_in_a_round_needs_nobody(prepared: Callable[..., Federation]):
    federation = prepared(("a",), rounds={"count": 1})
    pipe = held(federation, "a")

    def kill_three_times() -> None:
        for number in range(3):
            kill_held(federation, "a", pipe, again=number < 2)

    killing = threading.Thread(target=kill_three_times, daemon=True)
    killing.start()
    manifest = run(federation)[1]
    killing.join(60)
    assert set(manifest.updates) == {"a"}
    assert "validation was started 4 times" in "; ".join(manifest.incidents["a"])


def test_the_first_model_is_made_again_when_its_process_is_killed(prepared: Callable[..., Federation]):
    from tasks.runtime import runtime

    federation = prepared(("a",), run="first", rounds={"count": 1})
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            jobs = list(process.launcher._jobs.values())
            for pid in [job.pid for job in jobs if job.label == "first/initial" and job.pid]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.001)

    with runtime() as process:
        threading.Thread(target=kill, daemon=True).start()
        assert set(run(federation)[1].updates) == {"a"}
    assert len(killed) == 1


def held(federation: Federation, site: str) -> Path:
    """Has the site's next validation wait for ever: what it keeps of the last one becomes a pipe."""
    pipe = view_of(federation, site).cache_dir / "features.json"
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    return pipe


def kill_held(federation: Federation, site: str, pipe: Path, again: bool = False) -> None:
    """Kill the validation that waits for the pipe; the next one finds none, or, `again`, another."""
    log = view_of(federation, site).state_dir / "log" / "training.log"
    with pipe.open("wb"):  # opens as soon as the validation reads
        if again:
            held(federation, site)
        else:
            pipe.unlink()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "fd" / "1").resolve() == log.resolve():
                    os.kill(int(process.name), signal.SIGKILL)


def test_two_coordinators_one_commit(prepared: Callable[..., Federation]):
    from photon_core.aggregation.candidate import RoundLog
    from photon_core.aggregation.commit import commit
    from photon_core.aggregation.round import aggregate_round

    federation = prepared(rounds={"count": 1})
    manifest = run(federation)[1]
    again = aggregate_round(run_of(federation), federation, 1, manifest.sampled, {})
    with pytest.raises(StoreConflict):
        commit(run_of(federation), federation, again, RoundLog(manifest.sampled))
    assert history(run_of(federation))[1] == manifest


def test_the_graph_names_sites_and_steps(prepared: Callable[..., Federation]):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    federation = prepared(run="graphed", rounds={"count": 1})
    run(federation)
    expected = {f"{site} / {step}" for site in "ab" for step in ("validate", "train", "upload", "evaluate")}
    assert expected | {"sample sites", "aggregate", "publish"} <= task_names("graphed", expected)
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["photon-graphed-round"]))
        assert len(client.read_artifacts(artifact_filter=key)) == 1


def task_names(name: str, expected: set[str]) -> set[str]:
    """What the server calls the tasks of a run's first round, once it has recorded the expected ones."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run:{name}", "round:1"]))
    limit, names = time.monotonic() + 120, set[str]()
    with get_client(sync_client=True) as client:
        while not expected <= names and time.monotonic() < limit:
            names = {task.name for task in client.read_task_runs(flow_run_filter=mine)}
            time.sleep(0.5)
    return names


def test_a_run_starts_from_the_model_that_a_site_holds(prepared: Callable[..., Federation], tmp_path: Path):
    from photon_core.model.foreign import Checkpoint
    from photon_core.model.init import initial_model

    federation = prepared(run="started", rounds={"count": 1})
    (tmp_path / "held").mkdir()
    (tmp_path / "wanted").mkdir()
    initial_model(changed(federation, seed=99), tmp_path / "held")
    start = {"site": "b", "checkpoint": str(tmp_path / "held")}
    trackers = [{"name": "tensorboard", "folder": str(tmp_path / "trackers")}]
    first, last = run(changed(federation, start=start, trackers=trackers))
    (wanted,), hashes = Checkpoint(start["checkpoint"], federation.model, {}).write(tmp_path / "wanted")
    assert first.start is not None and (first.start.source, first.start.sha256) == ("b", hashes)
    assert [entry.sha256 for entry in first.model] == [sha256_file(wanted)]
    assert set(last.updates) == {"a", "b"}
    assert len(list((tmp_path / "trackers" / "tensorboard" / "started").glob("events.*"))) == 1


def test_sites_pause_join_and_leave_between_rounds(prepared: Callable[..., Federation]):
    settings = {"rounds": {"count": 3, "sampling": "tokens"}, "local": {"optimizer_state": "average"}}
    federation = prepared(("a", "b", "c"), **settings)
    a, b, c = (site.model_dump() for site in federation.sites)
    run(changed(federation, sites=[a, b]), rounds=1)
    run(changed(federation, sites=[a, b | {"paused": True}, c]), rounds=1)
    found = run(changed(federation, sites=[b, c], update={"moments_dtype": "bfloat16"}))
    assert [sorted(manifest.updates) for manifest in found] == [[], ["a", "b"], ["a", "c"], ["b", "c"]]
    assert [manifest.paused for manifest in found] == [[], [], ["b"], []]
    assert sorted(found[2].evaluations) == ["a", "c"]
    sent_as = [{t.dtype for entry in found[r].moments for t in entry.tensors.values()} for r in (1, 2, 3)]
    assert sent_as == [{"F32"}, {"F32"}, {"BF16"}]
    rows = {row["site"]: row["left out"] for row in summary(found[2])}
    assert rows == {"a": "", "b": "paused", "c": ""}
    assert (
        found[3].updates["b"].metrics["samples"] == 12 and found[3].updates["b"].metrics.get("state_lost") is None
    )
    assert all(ref.metrics["data_tokens"] > 0 for manifest in found[1:] for ref in manifest.updates.values())


def test_a_site_whose_nodes_train_apart_weighs_what_they_trained(prepared: Callable[..., Federation]):
    federation = prepared(("a", "b"), rounds={"count": 1})
    sites = [site.model_dump() for site in federation.sites]
    sites[0]["hardware"] = {"nodes": 2, "tflops": 1, "parallel": "federation"}
    (_, manifest) = run(changed(federation, sites=sites))
    a, b = manifest.updates["a"], manifest.updates["b"]
    assert (a.tokens, a.steps, a.metrics["nodes"]) == (2 * b.tokens, b.steps, 2)
    assert (a.weight, b.weight) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
