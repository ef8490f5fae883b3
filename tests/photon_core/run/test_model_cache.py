"""A site that fetches a model every round has room for a few, not for all of them."""

import os
import time
import uuid
from pathlib import Path

import pytest

from photon_core.hashing import sha256_bytes
from photon_core.run.model_cache import fetch_model
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from schemas.manifests import FileEntry, RoundManifest


def put(run: Run, t: int, name: str) -> FileEntry:
    data = f"{name} of round {t}".encode()
    run.store.create(f"{run.round_dir(t)}/{name}", data)
    return FileEntry(path=name, sha256=sha256_bytes(data), bytes=len(data))


def commit(run: Run, t: int, model: FileEntry, moments: FileEntry) -> RoundManifest:
    manifest = RoundManifest(
        run="run", round=t, model_sha256=model_sha256([model]), model=[model], moments=[moments] if t else [],
        federation_sha256="", created="", versions={}, previous_sha256=run.round_sha256(t - 1) if t else "",
    )  # fmt: skip
    run.commit_round(manifest)
    return manifest


@pytest.fixture
def run() -> Run:
    return Run(Store(f"memory://{uuid.uuid4().hex}"), "run")


def test_only_the_last_two_rounds_and_the_candidate_are_kept(run: Run, tmp_path: Path) -> None:
    for t in range(5):
        candidates = [put(run, t, f"candidate-{n}") for n in range(3)]
        for candidate in candidates:  # a site evaluates what the guard then lowers
            (path,) = fetch_model(run, t, [candidate], tmp_path, 2)
            assert path.read_text() == f"{candidate.path} of round {t}"
        manifest = commit(run, t, candidates[-1], put(run, t, "moments"))
        began = [path.stat().st_ino for path in fetch_model(run, t, manifest.model, tmp_path, 2)]
        fetch_model(run, t, manifest.moments, tmp_path, 2)
        assert [path.stat().st_ino for path in fetch_model(run, t, manifest.model, tmp_path, 2)] == began
    before = run.round(3)
    assert before is not None
    kept = [*before.model, *before.moments, *manifest.model, *manifest.moments]
    assert {path.name for path in tmp_path.iterdir()} == {entry.sha256 for entry in kept}


def test_what_is_no_copy_of_a_model_stays_and_old_downloads_go(run: Run, tmp_path: Path) -> None:
    model = put(run, 0, "model")
    old, older, new = f".{'1' * 32}.tmp", f".{'a' * 64}.{'2' * 32}.tmp", f".{'3' * 32}.tmp"
    for name in (old, older, new, "notes", "my.tmp", "a" * 64):
        (tmp_path / name).write_text("x")
    for name in (old, older, "my.tmp"):
        os.utime(tmp_path / name, (time.time() - 2 * 86_400,) * 2)
    fetch_model(run, 0, [model], tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {new, "notes", "my.tmp", model.sha256}


def test_a_local_stores_own_files_are_nobodys_copies(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path / "store")), "run")
    model = put(run, 0, "model")
    assert fetch_model(run, 0, [model], tmp_path / "cache", 2) == [tmp_path / "store" / run.round_dir(0) / "model"]
    assert not (tmp_path / "cache").exists()
