"""Nothing that a commit relies on is in memory alone: fsync of the private state before update.json."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.model.init import initial_model
from photon_core.run.opening import open_run
from photon_core.run.run import run_of
from photon_core.run.start import Initial
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from photon_core.update.upload import upload_update
from schemas.federation import Federation
from schemas.sections.update import Update
from schemas.view import view_of


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """What this process asks of the disk, in order: (fsync or link, inode, name)."""
    seen: list[tuple[str, int, str]] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(("fsync", os.fstat(descriptor).st_ino, ""))

    def noted_link(source: Any, target: Any, **options: Any) -> None:
        link(source, target, **options)
        seen.append(("link", os.lstat(target).st_ino, Path(target).name))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    return seen


@pytest.mark.parametrize("cut_off", [False, True])
def test_everything_private_is_on_the_disk_before_the_update_is_committed(
    cut_off: bool, make_site: Callable[..., Federation], tmp_path: Path, synced: list[tuple[str, int, str]]
) -> None:
    """training.pt with error feedback and the stream's place, samples.u32, the update's files, and their folders;
    also where a first process was killed between training and the commit, and the update is found."""
    federation = make_site(steps=2).model_copy(update={"update": Update(codec="int8")})
    run = run_of(federation)
    open_run(run, federation, "0" * 64, lambda: Initial(initial_model(federation, tmp_path)))
    base = run.round(0)
    assert base is not None
    files = [str(Path(federation.store, "tiny/rounds/000000", entry.path)) for entry in base.model]
    job = LocalJob(view_of(federation, "alpha"), 1, 1, files, base.model_sha256, 0)
    trained = train(job, lambda _: None)
    if cut_off:
        synced.clear()
        trained = train(job, pytest.fail)
    upload_update(run, view_of(federation, "alpha"), 1, trained)
    names = [name for _, _, name in synced]
    before = {inode for what, inode, _ in synced[: names.index("update.json")] if what == "fsync"}
    folder = Path(trained.folder)
    private = [folder, *folder.rglob("*"), folder.parent]
    assert {"training.pt", "samples.u32", "trained.json", "update"} <= {path.name for path in private}
    assert not [path for path in private if path.stat().st_ino not in before]
