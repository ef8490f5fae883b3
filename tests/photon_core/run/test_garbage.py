"""What garbage collection takes and never takes, on every kind of store, and that it may be stopped anywhere."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.errors import PhotonError
from photon_core.run import garbage
from photon_core.run.garbage import Rule, look, plan, remove
from photon_core.run.history import check_kept, history, ranges
from photon_core.run.run import Run, model_sha256
from photon_core.store.interface import Found
from photon_core.store.store import Store
from photon_core.tensors.container import NUMPY_DTYPES
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs import lossless
from schemas.manifests import (
    FileEntry,
    LastUpdate,
    RoundManifest,
    StartManifest,
    TensorEntry,
    UpdateManifest,
    UpdateRef,
)
from schemas.sections.server import Server
from tests.federations import updates_of

MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
SERVER = Server(optimizer="nesterov", lr=0.7, momentum=0.9)
LATER = time.time() + 1e6


def theta(seed: int) -> dict[str, Any]:
    return {"w": np.random.default_rng(seed).standard_normal(50).astype(np.float32)}


def upload(run: Run, t: int, site: str) -> UpdateManifest:
    """Any update for round t, committed."""
    base = run.round(t - 1)
    assert base
    plan = shard_plan({"w": TensorEntry(dtype="I32", shape=(50,))})
    with ShardWriter(run.store, run.site_dir(t, site, 1), "", plan) as writer:
        writer.write("w", lossless.encode(np.zeros(50, np.float32), np.zeros(50, np.float32)))
        files = writer.close()
    update = UpdateManifest(
        **{"run": run.run, "round": t, "site": site, "attempt": 1, "codec": "float32", "files": files},
        **{"tokens": 1, "steps": 1, "metrics": {"train_loss": 1.0}, "data_sha256": "", "versions": {}},
        base_sha256=base.model_sha256,
        previous_sha256=run.round_sha256(t - 1),
    )
    run.commit_update(update)
    return update


def go_on(run: Run, t: int, updates: dict[str, UpdateManifest] | None = None) -> None:
    """Round t: two updates, aggregated and committed."""
    result = aggregate(run, t, updates or {site: upload(run, t, site) for site in "ab"}, SERVER)
    run.commit_round(
        RoundManifest(
            **{"run": run.run, "round": t, "model": result.model, "optimizer": result.optimizer},
            **{"federation_sha256": "", "created": "", "versions": {}},
            model_sha256=model_sha256(result.model),
            previous_sha256=run.round_sha256(t - 1),
        )
    )


def data(run: Run) -> dict[int, int]:
    """Round -> its data files in the store."""
    counts: dict[int, int] = {}
    for file in run.store.walk(run.run):
        if file.path.endswith(".safetensors"):
            t = int(file.path.split("/")[2])
            counts[t] = counts.get(t, 0) + 1
    return counts


@pytest.fixture
def old_run(store: Store, make_run: MakeRun) -> Run:
    """Rounds 0 to 5, round 6 in progress: one update is there, another is being uploaded."""
    run, _ = make_run(store, theta(0), {})
    for t in range(1, 6):
        go_on(run, t)
    upload(run, 6, "a")
    store.create("run/rounds/000006/sites/b/0001/00001-of-00002.safetensors", b"half an update")
    store.create("run/rounds/000006/model/00001-of-00001-0a1b2c3d.safetensors", b"a candidate")
    return Run(store, "run")


def test_old_rounds_go_and_the_run_goes_on(old_run: Run) -> None:
    before = history(old_run)
    assert data(old_run) == {0: 1, 1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 3}
    found = look(old_run, Rule(last=2, every=3), LATER)
    assert found.kept == [0, 3, 4, 5]
    assert {t: len(files) for t, files in found.rounds.items()} == {1: 4, 2: 4}
    assert found.orphans == []
    assert found.bytes == sum(f.bytes for f in found.files) > 8 * 200
    remove(old_run, found)
    assert data(old_run) == {0: 1, 3: 4, 4: 4, 5: 4, 6: 3}

    run = Run(old_run.store, "run")
    assert history(run) == before
    note = run.removed(2)
    assert note and (note.files, note.bytes) == (4, sum(file.bytes for file in found.rounds[2]))
    with pytest.raises(
        PhotonError, match=r"round 2's model was removed by photon gc .*; kept rounds are 0, 3 to 5"
    ):
        check_kept(run, 2)
    check_kept(run, 3)
    result = aggregate(run, 6, updates_of(run, 6, "a"), SERVER)  # nothing that the next round needs is gone
    assert result.optimizer
    assert look(run, Rule(last=2, every=3), LATER).files == []
    assert set(look(run, Rule(last=1), LATER).rounds) == {0, 3, 4}
    assert look(run, Rule(last=5), LATER).kept == [3, 4, 5]  # a wider rule brings nothing back


def test_the_model_that_a_site_uploaded_to_start_from_belongs_to_round_0(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    place = run.site_dir(0, "a", 1)
    with ShardWriter(run.store, place, "", shard_plan({"w": TensorEntry(dtype="F32", shape=(50,))})) as writer:
        writer.write("w", theta(0)["w"])
        start = StartManifest(run="run", site="a", files=writer.close(), sha256={})
    run.store.create(f"{place}/start.json", start.model_dump_json().encode())
    go_on(run, 1)
    assert look(run, Rule(last=2), LATER).files == []
    found = look(run, Rule(last=1), LATER)
    assert ({t: len(files) for t, files in found.rounds.items()}, found.orphans) == ({0: 2}, [])


def test_orphans_go_when_they_are_old_and_their_round_is_committed(tmp_path: Path, make_run: MakeRun) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    go_on(run, 1)
    rounds = tmp_path / "run" / "rounds"
    orphans = [
        rounds / "000001/model/00001-of-00001-0a1b2c3d.safetensors",
        rounds / "000001/sites/c/0001/00001-of-00002.safetensors",
        rounds / f"000001/model/.{'0' * 32}.tmp",
        rounds / f"000001/sites/c/0001/.probe-{'1' * 32}",
    ]
    others = [
        rounds / "000001/model/notes.txt",
        rounds / "000001/model/.hidden",
        rounds / f"000002/model/.{'0' * 32}.tmp",
        tmp_path / "run/somebody.safetensors",
        rounds / "000001/sites/a/evaluation-0123456789abcdef.json",
        tmp_path / "other-run/rounds/000001/model/x.safetensors",
    ]
    for path in orphans + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    assert look(run, Rule()).files == []
    for path in orphans[:3] + others:
        os.utime(path, (1, 1))
    found = look(run, Rule())
    assert [file.path for file in found.orphans] == sorted(str(p.relative_to(tmp_path)) for p in orphans[:3])
    remove(run, found)
    assert [path.exists() for path in orphans] == [False] * 3 + [True]
    assert all(path.exists() for path in others)
    assert run.removed(1) is None


def test_finished_shards_stay_while_their_round_is_in_progress(store: Store, make_run: MakeRun) -> None:
    """A record is no manifest: its shards are orphans once the round is committed; a retry may use them before."""
    run, updates = make_run(store, theta(0), {site: (theta(k), 1) for k, site in enumerate("ab")})
    interrupted = aggregate(run, 1, updates, SERVER, limits=Limits(shard_bytes=80))  # nobody commits it
    records = [file.path for file in store.walk("run/rounds/000001/finished")]
    assert len(records) == len(interrupted.model) == 3
    assert look(run, Rule(last=1), LATER).files == []
    again = aggregate(run, 1, updates, SERVER, limits=Limits(shard_bytes=80))
    assert [entry.path for entry in again.model] == [entry.path for entry in interrupted.model]

    go_on(run, 1, updates)  # in one file: another result, of the same updates
    found = look(run, Rule(last=1), LATER)
    left = [f"run/rounds/000001/{entry.path}" for entry in (*again.model, *again.optimizer)]
    assert [file.path for file in found.orphans] == sorted(left)
    remove(run, found)
    assert [file.path for file in store.walk("run/rounds/000001/finished")] == records
    go_on(run, 2)
    assert aggregate(run, 3, {"a": upload(run, 3, "a")}, SERVER).optimizer


def test_an_update_that_is_no_manifest_covers_nothing(tmp_path: Path, make_run: MakeRun) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    go_on(run, 1)
    folder = tmp_path / "run/rounds/000001/sites/evil/0001"
    folder.mkdir(parents=True)
    (folder / "update.json").write_text("{")
    (folder / "00001-of-00001.safetensors").write_bytes(b"x")
    assert [file.path for file in look(run, Rule(), LATER).orphans] == [
        "run/rounds/000001/sites/evil/0001/00001-of-00001.safetensors"
    ]


def test_stopped_in_the_middle_it_is_done_by_the_next(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    for t in range(1, 4):
        go_on(run, t)

    class Killed(BaseException):
        pass

    for tries in range(4):
        left = [tries]

        def discard(store: Store, path: str, left: list[int] = left, plain: Any = Store.discard) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            plain(store, path)

        with monkeypatch.context() as patch:
            patch.setattr(garbage, "THREADS", 1)
            patch.setattr(Store, "discard", discard)
            with pytest.raises(Killed):
                remove(run, look(run, Rule(last=1)))
        missing = {t for t in (0, 1, 2) if data(run).get(t, 0) < (4 if t else 1)}
        assert all(Run(run.store, "run").removed(t) for t in missing), "what is missing is on record"
    remove(run, look(run, Rule(last=4)))  # keeps more, but what is on record as removed does not come back
    assert data(run) == {3: 4}
    assert Run(run.store, "run").latest() == 3


def test_what_was_planned_stays_right_when_the_run_goes_on(tmp_path: Path, make_run: MakeRun) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    go_on(run, 1)
    found = look(run, Rule(last=1), LATER)
    for t in (2, 3):
        go_on(run, t)
    remove(run, found)
    remove(run, found)
    assert data(run) == {1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize("last", [1, 2, 5, 100])
@pytest.mark.parametrize("every", [None, 1, 2, 7])
def test_the_latest_round_is_never_in_the_plan(last: int, every: int | None) -> None:
    files = [Found(f"r/rounds/{t:06d}/model/x.safetensors", 1, 0.0) for t in range(12)]
    named = {file.path: t for t, file in enumerate(files)}
    found = plan(files, named, range(11), Rule(last, every), LATER)
    gone = {int(file.path.split("/")[2]) for file in found.files}
    kept = {t for t in range(11) if t > 10 - last or (every and t % every == 0)}
    assert set(found.kept) == kept and gone == set(range(11)) - kept and 10 not in gone
    assert not found.orphans


def test_a_file_that_a_later_round_names_too_is_kept_with_it() -> None:
    shared = Found("r/rounds/000001/model/x.safetensors", 1, 0.0)
    assert plan([shared], {shared.path: 4}, range(5), Rule(last=1), LATER).files == []


def test_rules_that_would_keep_nothing_are_refused(tmp_path: Path, make_run: MakeRun) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    for rule in (Rule(last=0), Rule(every=0)):
        with pytest.raises(PhotonError, match="at least the latest round"):
            look(run, rule)
    with pytest.raises(PhotonError, match="run 'none' has no rounds"):
        look(Run(run.store, "none"), Rule())


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1], "0, 1"), ([0, 2, 3, 4, 9], "0, 2 to 4, 9")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_a_users_files_in_the_store_stay(tmp_path: Path, make_run: MakeRun) -> None:
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    for t in (1, 2):
        go_on(run, t)
    rounds = tmp_path / "run/rounds"
    mine = [
        rounds / name
        for name in ("000001/best.safetensors", "000001/model/mine.safetensors", "000001/model/notes.tmp",
                     "000001/keep/00001-of-00001.safetensors", "000001/sites/a/mine.safetensors")
    ]  # fmt: skip
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    remove(run, look(run, Rule(last=1), LATER))
    assert [path.read_bytes() for path in mine] == [b"mine"] * len(mine)


def test_the_ten_thousandth_attempt_of_a_kept_round_is_no_orphan(tmp_path: Path, make_run: MakeRun) -> None:
    """Its folder's name has five digits (A5): what update.json there names stays as long as its round."""
    run, _ = make_run(Store(str(tmp_path)), theta(0), {})
    go_on(run, 1)
    first = tmp_path / run.site_dir(1, "a", 1)
    last = tmp_path / run.site_dir(1, "a", 10_000)
    first.rename(last)
    update = last / "update.json"
    update.write_text(update.read_text().replace('"attempt":1,', '"attempt":10000,'))
    assert look(Run(run.store, "run"), Rule(), LATER).orphans == []


def with_layers(run: Run, t: int, site: str) -> UpdateManifest:
    """An update for round t of a model of the tensors w and k, k being a key layer."""
    base, place = run.round(t - 1), run.site_dir(t, site, 1)
    assert base
    files = write(run, place, "", "w", "I32")
    update = UpdateManifest(
        **{"run": run.run, "round": t, "site": site, "attempt": 1, "codec": "float32", "files": files},
        **{"tokens": 1, "steps": 1, "metrics": {"train_loss": 1.0}, "data_sha256": "", "versions": {}},
        base_sha256=base.model_sha256,
        key_layers=write(run, place, "k-", "k", "F32"),
        previous_sha256=run.round_sha256(t - 1),
    )
    run.commit_update(update)
    return update


def write(run: Run, folder: str, stem: str, name: str, dtype: str) -> list[FileEntry]:
    with ShardWriter(run.store, folder, stem, [{name: TensorEntry(dtype=dtype, shape=(4,))}]) as writer:
        writer.write(name, np.zeros(4, NUMPY_DTYPES[dtype]))
        return writer.close()


def commit_layers(run: Run, t: int, sites: str = "", earlier: dict[str, int] | None = None, **more: Any) -> None:
    """Round t with the updates of these sites; site -> its newest round before."""
    model = (
        [] if more else [entry for name in "wk" for entry in write(run, run.round_dir(t), "model/", name, "F32")]
    )
    updates = {site: with_layers(run, t, site) for site in sites}
    refs = {
        site: UpdateRef(attempt=1, sha256="", tokens=1, weight=1.0, bytes=1, steps=1, metrics={"train_loss": 1.0})
        for site in updates
    }
    run.commit_round(
        RoundManifest(
            **{"run": run.run, "round": t, "federation_sha256": "", "created": "", "versions": {}},
            **{"model": model, "model_sha256": model_sha256(model), "key_layers": {"k": ["k"]}, **more},
            updates=refs,
            earlier={site: LastUpdate(round=at, attempt=1) for site, at in (earlier or {}).items()},
            previous_sha256=run.round_sha256(t - 1) if t else "",
        )
    )


def left(run: Run, t: int) -> set[str]:
    """Sites whose key layers, and no other files, are left of round t."""
    paths = [f.path.removeprefix(f"{run.round_dir(t)}/") for f in run.store.walk(run.round_dir(t))]
    data = [path for path in paths if path.endswith(".safetensors")]
    assert all(path.startswith("sites/") and "/k-" in path for path in data), data
    return {path.split("/")[1] for path in data}


@pytest.fixture
def layered(store: Store) -> Run:
    """Site a is in every round, b in rounds 1 and 4, c in round 2 alone; round 0 has no updates."""
    run = Run(store, "run")
    commit_layers(run, 0)
    commit_layers(run, 1, "ab")
    commit_layers(run, 2, "ac", {"b": 1})
    commit_layers(run, 3, "a", {"b": 1, "c": 2})
    commit_layers(run, 4, "ab", {"c": 2})
    commit_layers(run, 5, "a", {"b": 4, "c": 2})
    return run


def test_key_layers_of_a_members_newest_update_stay_however_old_they_are(layered: Run) -> None:
    remove(layered, look(layered, Rule(last=1), LATER))
    assert [left(layered, t) for t in range(5)] == [set(), set(), {"c"}, set(), {"b"}]
    assert look(Run(layered.store, "run"), Rule(last=1), LATER).files == []
    update = Run(layered.store, "run").update(2, "c", 1)
    assert update is not None
    layered.store.check(update.key_layers[0], layered.site_dir(2, "c", 1))
    commit_layers(layered, 6, "bc", {"a": 5})
    remove(layered, look(layered, Rule(last=1), LATER))
    assert [left(layered, t) for t in range(6)] == [set()] * 5 + [{"a"}], "a newer update takes its place"


def test_so_do_those_that_a_round_which_is_kept_goes_on_from(layered: Run) -> None:
    """A rollback to it may follow: b would continue with its key layers of round 1."""
    remove(layered, look(layered, Rule(last=1, every=3), LATER))
    assert [left(layered, t) for t in (1, 2, 4)] == [{"b"}, {"c"}, {"b"}]


def test_a_rollback_since_the_look_keeps_the_key_layers_that_it_goes_on_from(layered: Run) -> None:
    found = look(layered, Rule(last=1), LATER)
    third = layered.round(3)
    assert third is not None and f"{layered.site_dir(1, 'b', 1)}/" in str(found.rounds[1])
    carried = {name: getattr(third, name) for name in ("model", "model_sha256")}
    commit_layers(layered, 6, "", {"a": 3, "b": 1, "c": 2}, kind="rollback", to=3, **carried)
    remove(layered, found)
    assert left(layered, 1) == {"b"} and left(layered, 2) == {"c"}
    assert layered.removed(1) is not None and layered.removed(3) is None


def test_all_of_an_update_that_cannot_be_read_stays(layered: Run) -> None:
    place = f"{layered.site_dir(2, 'c', 1)}/update.json"
    layered.store.discard(place)
    layered.store.create(place, b"{")
    run = Run(layered.store, "run")
    remove(run, look(run, Rule(last=1), LATER))
    assert sum(f.path.endswith(".safetensors") for f in run.store.walk(run.site_dir(2, "c", 1))) == 2
