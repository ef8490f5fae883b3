"""A run's paths and manifests: golden bytes, the chain, attempts, and what unreferenced files must not change."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import CorruptFile, PhotonError, StoreConflict
from photon_core.hashing import sha256_bytes
from photon_core.run import objects
from photon_core.run.objects import manifest_bytes
from photon_core.run.provenance import versions
from photon_core.run.run import RUNS_LIMIT, Run, model_sha256, run_of
from photon_core.store.store import Store
from schemas.manifests import FileEntry, RoundManifest, RunManifest, TensorEntry, UpdateManifest
from schemas.sections.deploy import Storage
from tests.federations import sample

SHARD = FileEntry(
    path="model/00001-of-00001-0a1b2c3d.safetensors",
    sha256="ab" * 32,
    bytes=96,
    tensors={"w": TensorEntry(dtype="F32", shape=(2, 1))},
)


def round_manifest(t: int, previous: str, **changes: Any) -> RoundManifest:
    fields = {"run": "run", "round": t, "model": [SHARD], "model_sha256": model_sha256([SHARD])}
    rest = {"previous_sha256": previous, "federation_sha256": "f", "created": "c", "versions": {}}
    return RoundManifest(**{**fields, **rest, **changes})


def update_manifest(t: int, site: str, attempt: int, **changes: Any) -> UpdateManifest:
    fields = {"run": "run", "round": t, "site": site, "attempt": attempt, "base_sha256": "b", "codec": "float32"}
    rest = {"files": [], "tokens": 1, "steps": 1, "metrics": {}, "data_sha256": "d", "versions": {}}
    return UpdateManifest(**{**fields, **rest, "previous_sha256": "p", **changes})


def commit_rounds(run: Run, count: int) -> None:
    for t in range(count):
        run.commit_round(round_manifest(t, run.round_sha256(t - 1) if t else ""))


def test_paths() -> None:
    run = Run(Store("memory://layout"), "wiki.2")
    assert run.round_dir(7) == "wiki.2/rounds/000007"
    assert run.site_dir(7, "site-a", 1) == "wiki.2/rounds/000007/sites/site-a/0001"


@pytest.mark.parametrize("name", ["..", "a/b", "../a", "", "a b", "a\\b", "-a", "x" * 64])
def test_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(PhotonError):
        Run(Store("memory://layout"), name)
    with pytest.raises(PhotonError):
        Run(Store("memory://layout"), "run").site_dir(1, name, 1)


def test_a_run_grows(store: Store) -> None:
    run = Run(store, "run")
    assert run.run_manifest() is None
    assert run.latest() is None
    assert run.round(0) is None
    born = RunManifest(
        run="run", created="c", federation={"a": 1}, federation_sha256="f", tokenizer_sha256="t", versions={}
    )
    run.create_run(born)
    assert run.run_manifest() == born
    with pytest.raises(StoreConflict):
        Run(store, "run").create_run(born.model_copy(update={"created": "later"}))
    commit_rounds(run, 3)
    again = Run(store, "run")
    assert again.latest() == 2
    assert again.round(2) == run.round(2)
    assert again.round_sha256(2) == sha256_bytes(store.read("run/rounds/000002/round.json"))
    with pytest.raises(StoreConflict):
        again.commit_round(round_manifest(2, run.round_sha256(1), created="later"))


def test_other_files_are_no_round(store: Store) -> None:
    run = Run(store, "run")
    commit_rounds(run, 2)
    store.create("run/rounds/000002/sites/a/0001/update-00001.safetensors", b"half an update")
    store.create("run/rounds/000009/model/00001.safetensors", b"half a model")
    store.create("run/rounds/notes/round.json", b"{}")
    assert run.latest() == 1
    assert run.committed_attempt(2, "a") == 0


def test_attempts(store: Store) -> None:
    run = Run(store, "run")
    assert run.committed_attempt(1, "a") == 0
    for attempt in (2, 1, 11):
        run.commit_update(update_manifest(1, "a", attempt))
    run.commit_update(update_manifest(1, "b", 1))
    assert run.committed_attempt(1, "a") == 2, "3 is missing: nobody looks further"
    with pytest.raises(StoreConflict):
        run.commit_update(update_manifest(1, "a", 2, tokens=5))
    path = "run/rounds/000001/sites/a/0002/update.json"
    assert run.update_sha256(1, "a", 2) == sha256_bytes(store.read(path))
    with pytest.raises(PhotonError, match="attempt 3 of site 'a' for round 1 is not committed"):
        run.update_sha256(1, "a", 3)


def test_golden_manifest() -> None:
    update = update_manifest(3, "wiki", 2, files=[SHARD], metrics={"train_loss": 2.5}, versions={"numpy": "2"})
    assert manifest_bytes(update) == (
        b'{"attempt":2,"base_dtype":"F32","base_sha256":"b","checks":[],"clip_norm":null,"codec":"float32",'
        b'"data_sha256":"d","files":[{"bytes":96,'
        b'"path":"model/00001-of-00001-0a1b2c3d.safetensors","sha256":"' + b"ab" * 32 + b'",'
        b'"tensors":{"w":{"dtype":"F32","shape":[2,1]}}}],"metrics":{"train_loss":2.5},"moments":[],'
        b'"noise_multiplier":0.0,"notes":[],"previous_sha256":"p",'
        b'"round":3,"run":"run","site":"wiki","spans":[],"steps":1,"tokens":1,"versions":{"numpy":"2"}}\n'
    )


def test_model_sha256_is_over_the_files_hashes_in_order() -> None:
    other = SHARD.model_copy(update={"sha256": "cd" * 32})
    assert model_sha256([SHARD, other]) == sha256_bytes(b"ab" * 32 + b"\n" + b"cd" * 32 + b"\n")
    assert model_sha256([SHARD, other]) != model_sha256([other, SHARD])
    assert model_sha256([SHARD]) == model_sha256([SHARD.model_copy(update={"path": "model/other"})])


def test_a_round_must_follow_the_one_before(store: Store) -> None:
    run = Run(store, "run")
    commit_rounds(run, 1)
    with pytest.raises(CorruptFile, match="the chain is broken"):
        run.commit_round(round_manifest(1, "0" * 64))
    with pytest.raises(PhotonError, match="round 4 of run 'run' is not committed"):
        run.commit_round(round_manifest(5, "0" * 64))
    with pytest.raises(PhotonError, match="model_sha256 is 'x'"):
        run.commit_round(round_manifest(1, run.round_sha256(0), model_sha256="x"))
    with pytest.raises(PhotonError, match="run is 'other'"):
        run.commit_round(round_manifest(1, run.round_sha256(0), run="other"))
    assert run.latest() == 0


def test_a_changed_or_missing_round_is_found(tmp_path: Path) -> None:
    commit_rounds(Run(Store(str(tmp_path)), "run"), 3)
    path = tmp_path / "run/rounds/000001/round.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"created":"c"', b'"created":"d"'))
    with pytest.raises(CorruptFile, match="the chain is broken"):
        Run(Store(str(tmp_path)), "run").latest()
    path.unlink()
    with pytest.raises(PhotonError, match="round 1 of run 'run' is not committed"):
        Run(Store(str(tmp_path)), "run").latest()


def test_manifests_speak_of_their_place_and_are_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    run = Run(store, "run")
    for attempt, data in enumerate(
        [
            manifest_bytes(update_manifest(1, "b", 1)),
            manifest_bytes(update_manifest(1, "a", 2))[:-20],
            b'{"tokens": "many"}',
            b"[" * 100_000,
            b"\xff",
        ],
        start=1,
    ):
        store.create(f"run/rounds/000001/sites/a/{attempt:04d}/update.json", data)
        with pytest.raises(CorruptFile, match=f"{attempt:04d}/update.json"):
            run.update(1, "a", attempt)
    store.create("run/rounds/000001/round.json", manifest_bytes(round_manifest(2, "")))
    with pytest.raises(CorruptFile, match="names run 'run', round 2: not those of its path"):
        run.round(1)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run/rounds/000001/sites/a/0001/update.json"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    with pytest.raises(CorruptFile, match="1099511627776 bytes"):
        Run(Store(str(tmp_path)), "run").update(1, "a", 1)


def test_versions_name_what_shapes_the_result() -> None:
    found = versions()
    assert {"photon", "python", "torch", "mosaicml", "mosaicml-streaming", "prefect", "numpy"} == set(found)
    assert all(found.values())


def test_one_run_a_store_and_run_in_a_process(tmp_path: Path) -> None:
    here = sample(store=str(tmp_path), run="x")
    run = run_of(here)
    assert run_of(here) is run is run_of(sample(store=f"{tmp_path}/", run="x"))
    assert run_of(here.model_copy(update={"run": "b"})) is not run
    assert run_of(here.model_copy(update={"store": str(tmp_path / "b")})) is not run
    assert run_of(here.model_copy(update={"storage": Storage(single_writer=True)})) is not run
    copy = pickle.loads(pickle.dumps(run))
    assert (copy.store.url, copy.run) == (run.store.url, run.run)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: run_of(here), range(64))) == {run}
    for number in range(RUNS_LIMIT):
        run_of(here.model_copy(update={"run": f"r{number}"}))
    assert run_of(here) is not run, "a process keeps the runs that it used last"


def test_a_forked_child_has_runs_of_its_own(tmp_path: Path) -> None:
    here = sample(store=str(tmp_path))
    run = run_of(here)
    child = os.fork()
    if not child:
        os._exit(run_of(here) is run)
    assert os.waitpid(child, 0)[1] == 0 and run_of(here) is run


class Counted(Store):
    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.reads = 0

    def read(self, path: str, limit: int | None = None) -> bytes:
        self.reads += 1
        return super().read(path, limit)


def test_what_a_run_has_read_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to its own bound, and what was used last is kept."""
    store = Counted(str(tmp_path))
    run = Run(store, "run")
    assert run.round(0) is None
    commit_rounds(run, 3)
    size, store.reads = len(store.read("run/rounds/000001/round.json")), 0
    monkeypatch.setattr(objects, "KNOWN_LIMIT", 2 * size)
    run = Run(store, "run")
    for t, reads in ((0, 1), (1, 2), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        assert run.round(t) and store.reads == reads
