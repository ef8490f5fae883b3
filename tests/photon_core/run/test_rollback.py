"""Point 6 on the store's real paths, but for training: what a rollback commits, refuses, keeps, and races with.

Point 11: looking back costs as many requests after 200 rounds as after 20.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.candidate import RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.round import aggregate_round, apply_again
from photon_core.errors import CorruptFile, FederationError, PhotonError, StoreConflict
from photon_core.evidence.record import read_record
from photon_core.run.garbage import Rule, look, remove
from photon_core.run.history import check_kept, history
from photon_core.run.line import line
from photon_core.run.rollback import roll_back, without_updates
from photon_core.run.run import Run, files_of, forget_runs, run_of
from photon_core.run.sampling import TOKENS, member_tokens, sampled_members
from photon_core.run.updates import last_contribution
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tests.photon_core.aggregation.test_guard import (
    SITES,
    aggregate_and_commit,
    evaluate,
    federation,
    make_round,
    start,
    train,
)

SETTING = {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.9}
LATER = 1e12


@pytest.fixture
def four(tmp_path: Path) -> Run:
    """Rounds 0 to 4."""
    run = start(tmp_path / "store", model_norm=40.0)
    for t in range(1, 5):
        make_round(run, federation(**SETTING), t)
    return run


def result(manifest: RoundManifest) -> list[Any]:
    hashes = [entry.sha256 for entry in files_of(manifest)]
    return [manifest.model_sha256, hashes, manifest.global_step, manifest.metrics, manifest.guard]


def fresh(run: Run) -> Run:
    return Run(run.store, run.run)


def test_a_rollback_names_the_files_and_counters_of_its_round_and_changes_nothing_else(four: Run) -> None:
    before = {file.path: four.store.read(file.path) for file in four.store.walk("run")}
    roll_back(four, federation(**SETTING), 2, "round 3 was bad\x1b[31m", "ann")
    after = {file.path: fresh(four).store.read(file.path) for file in four.store.walk("run")}
    assert set(after) - set(before) == {"run/rounds/000005/round.json"}
    assert all(after[path] == data for path, data in before.items())
    found, two, last = fresh(four).round(5), four.round(2), four.round(4)
    assert found and two and last
    assert (found.kind, found.to, found.reason, found.who) == ("rollback", 2, "round 3 was bad?[31m", "ann")
    assert (files_of(found), found.model_sha256) == (files_of(two), two.model_sha256)
    assert (found.global_step, found.total_tokens, found.updates) == (two.global_step, two.total_tokens, {})
    assert (found.place, [m.place for m in history(four)]) == (2, [0, 1, 2, 3, 4, 2])
    assert "kind" not in four.store.read("run/rounds/000004/round.json").decode(), "defaults are omitted"


def test_the_line_is_followed_by_state_tokens_guard_and_the_next_rounds(four: Run) -> None:
    """Rounds 6 and 7 make the models of rounds 3 and 4 again, momentum and guard included."""
    roll_back(four, federation(**SETTING), 2)
    run = fresh(four)
    assert [m.round for m in line(run, 5)] == [2, 1, 0]
    assert last_contribution(run, "a", 6) == (2, 1)
    for t in (6, 7):
        made, old = make_round(fresh(run), federation(**SETTING), t), run.round(t - 3)
        assert old and result(made) == result(old)
    assert [m.round for m in line(run, 7)] == [7, 6, 2, 1, 0] and last_contribution(run, "a", 8) == (7, 1)
    roll_back(run, federation(), 4)  # forward again, to what was rolled back
    assert last_contribution(fresh(run), "a", 9) == (4, 1)
    roll_back(run, federation(), 5)  # a rollback's own number is the model that it went back to
    latest = fresh(run).round(9)
    assert latest and (latest.place, run.files_dir(9)) == (2, "run/rounds/000002")
    assert last_contribution(run, "a", 10) == (2, 1)
    roll_back(run, federation(), 0)
    assert last_contribution(fresh(run), "a", 11) is None and make_round(run, federation(**SETTING), 11).place == 1


def test_the_guards_running_values_are_those_of_the_line(four: Run) -> None:
    """Two rounds with a far higher loss are rolled back: the next round is not judged by them."""
    setting = federation(**SETTING, guard={"loss_jump": 0.5, "norm_factor": None})
    for t in (5, 6, 7):
        make_round(four, federation(**SETTING, guard={"tries": 0}), t, lambda change: change + np.float32(3))
    roll_back(four, setting, 4)
    made = make_round(four, setting, 9, lambda change: change + np.float32(3))
    assert made.guard and "the validation loss is" in made.guard[0]


REFUSED = [
    (4, "round 4 is the latest of run 'run'; write --to 0 to 3"),
    (5, "round 5 of run 'run' is not committed; write --to 0 to 3"),
    (-1, "round -1 of run 'run' is not committed; write --to 0 to 3"),
]


@pytest.mark.parametrize("to, message", REFUSED)
def test_what_cannot_be_gone_back_to_is_refused_by_name(four: Run, to: int, message: str) -> None:
    with pytest.raises(FederationError, match=message):
        roll_back(four, federation(), to)
    assert four.latest() == 4


def test_an_unknown_run_and_a_damaged_round_are_refused(four: Run, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"run 'other' has no rounds in .*; correct the file's run or"):
        roll_back(Run(four.store, "other"), federation(), 0)
    two = four.round(2)
    assert two is not None
    file = tmp_path / "store" / four.round_dir(2) / two.model[0].path
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=r"000002/model/.* bytes; its manifest says"):
        roll_back(four, federation(), 2)
    file.unlink()
    with pytest.raises(CorruptFile, match=r"000002/model/.* is missing"):
        roll_back(four, federation(), 2)


def test_garbage_collection_keeps_what_a_rollback_names_and_a_collected_round_is_refused(four: Run) -> None:
    setting = federation(**SETTING)
    roll_back(four, setting, 1)
    found = look(fresh(four), Rule(last=1), LATER)
    assert found.kept == [1, 5] and set(found.rounds) == {0, 2, 3, 4}
    remove(four, found)
    with pytest.raises(PhotonError, match=r"round 3's model was removed by photon gc .*; kept rounds are 1, 5$"):
        roll_back(fresh(four), setting, 3)
    check_kept(four, 5)
    for t in (6, 7):
        make_round(fresh(four), setting, t)
    found = look(fresh(four), Rule(last=1), LATER)
    assert found.kept == [7] and 1 in found.rounds, "no round that is kept names round 1's files any more"
    remove(four, found)
    for t in (1, 5):
        with pytest.raises(PhotonError, match=r"kept rounds are 7$"):
            check_kept(fresh(four), t)


def test_a_rollback_between_the_look_and_the_removal_keeps_its_round(four: Run) -> None:
    found = look(fresh(four), Rule(last=1), LATER)
    assert 2 in found.rounds
    roll_back(fresh(four), federation(), 2)
    remove(fresh(four), found)
    check_kept(fresh(four), 5)
    assert make_round(fresh(four), federation(**SETTING), 6).place == 3
    assert 2 not in look(fresh(four), Rule(last=2), LATER).rounds


def test_of_rollbacks_at_once_one_commits_and_the_others_conflict(store: Store) -> None:
    run, setting = start(store.url, model_norm=40.0) if store.is_local else _on(store), federation(**SETTING)
    for t in (1, 2):
        make_round(run, setting, t)
    base, barrier, told = run.round(1), threading.Barrier(6), list[str]()
    assert base

    def back() -> None:
        mine = Run(run.store, "run")
        manifest = without_updates(mine, setting, "rollback", base, 3, "the same words", "the same user")
        barrier.wait()
        try:
            mine.commit_round(manifest)
            told.append("committed")
        except StoreConflict:
            told.append("conflict")

    threads = [threading.Thread(target=back) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["committed", *["conflict"] * 5]
    with pytest.raises(FederationError, match="round 3, the latest of run 'run', already has the model of round"):
        roll_back(fresh(run), setting, 1)


def _on(store: Store) -> Run:
    made = start(f"memory://{id(store)}", model_norm=40.0)
    run = Run(store, "run")
    for file in made.store.walk("run"):
        store.create(file.path, made.store.read(file.path))
    return run


def test_a_rollback_while_a_round_is_open_takes_its_number_and_its_updates_are_not_used(four: Run) -> None:
    """Either may commit first; the next round starts from the rollback's model, with new updates."""
    setting = federation(**SETTING)
    for site in SITES:
        train(four, 5, site, lambda change: change)
    open_round = fresh(four)
    candidate = aggregate_round(open_round, setting, 5, list(SITES), {})
    evaluations = evaluate(open_round, candidate)
    assert apply_again(open_round, setting, candidate, evaluations) is None
    roll_back(fresh(four), setting, 2)
    with pytest.raises(StoreConflict):
        commit(open_round, setting, candidate, RoundLog(list(SITES), evaluations))
    run = fresh(four)
    train(run, 6, "a", lambda change: change)
    old = run.update(5, "b", 1)
    assert old is not None
    stale = {"round": 6, "site": "b", "attempt": 1}
    for entry in old.files:
        run.store.create(
            f"{run.site_dir(6, 'b', 1)}/{entry.path}", run.store.read(f"{run.site_dir(5, 'b', 1)}/{entry.path}")
        )
    run.commit_update(old.model_copy(update=stale))
    train(run, 6, "c", lambda change: change)
    made = aggregate_and_commit(fresh(run), setting, 6)
    assert set(made.updates) == {"a", "c"} and "round 5's model is" in made.left_out["b"]
    assert made.place == 3
    with pytest.raises(StoreConflict, match="nothing was rolled back"):
        _roll_back_late(four, setting)


def _roll_back_late(before: Run, setting: Federation) -> None:
    """A rollback that took its look before round 5 was committed."""

    class Then(Run):
        def latest(self) -> int | None:
            return 4

    roll_back(Then(before.store, "run"), setting, 2)


def test_200_rounds_are_read_with_as_many_requests_each_as_20(tmp_path: Path) -> None:
    """Sampling by tokens, a site that never contributes, the guard, the commit and the report's record, each with
    a new Run, as the steps of a round have: files opened and folders listed in the store, counted by the
    interpreter itself."""
    setting = Federation.model_validate(
        federation(lr=0.5).model_dump()
        | {"store": str(tmp_path / "store"), "rounds": {"count": 400, "sampling": "tokens", "quorum": 2}}
    )
    start(tmp_path / "store", model_norm=40.0)
    counts = [
        _count(tmp_path / "store", lambda t=t: _whole_round(setting, t, tmp_path / "cache")) for t in range(1, 201)
    ]
    assert counts[19] == counts[99] == counts[199], counts
    assert sum(counts[100:]) == sum(counts[:100]) + sum(counts[-1] - few for few in counts[:10])


def _alone(setting: Federation) -> Run:
    """The run as a process finds it that has read nothing yet."""
    forget_runs()
    return run_of(setting)


def _whole_round(setting: Federation, t: int, cache: Path) -> None:
    sampled_members(_alone(setting), setting, t)
    for site in (*SITES, "never"):
        assert last_contribution(_alone(setting), site, t) == (None if t == 1 or site == "never" else (t - 1, 1))
    member_tokens(_alone(setting), [*SITES, "never"], t)
    make_round(_alone(setting), setting, t, **{TOKENS: 100.0})
    record = read_record(Run(_alone(setting).store, setting.run, cache), 400, t)
    assert len(record.trained) == t


def _count(folder: Path, work: Callable[[], Any]) -> int:
    """Files opened and folders listed below a folder meanwhile."""
    _seen.clear()
    _watched.append(str(folder))
    try:
        work()
    finally:
        _watched.clear()
    return len(_seen)


_watched: list[str] = []
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(_watched[0]):
        _seen.append(f"{event} {arguments[0]}")


sys.addaudithook(_hook)
