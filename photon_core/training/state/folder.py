"""The site's private state: what one round of local training leaves for the next. It never leaves the site.

    <state_dir>/state/000007-0001/training.pt       optimizer, stream position, random number generators
                                  samples.u32       numbers of the samples trained, in order (see callback.py)
                                  update/           the encoded update, until it is uploaded
                                  trained.json      the result, and the hashes of the above

A folder appears whole or not at all: it is written under another name and renamed.
"""

import dataclasses
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from photon_core.files import clear, make_folder, sync_folder, sync_tree
from photon_core.hashing import canonical_json, sha256_file
from photon_core.training.job import LocalJob
from photon_core.update.trained import Trained
from schemas.manifests import Attention, FileEntry

KEPT_ROUNDS = 3
RESULT = "trained.json"
TRAINING = "training.pt"
SAMPLES = "samples.u32"
UPDATE = "update"
FILES = ("files", "moments", "key_layers")  # fields of what was trained
OF_KEY_LAYERS = ("key_layers", "entry_sha256", "entry")
WRITING = ".writing-"  # how the names of folders begin that are being written, or replaced
SHARDS = re.compile(r"[^/]+\.safetensors")
FOLDER = re.compile(r"(\d{6,})-\d{4,}")
OURS = re.compile(rf"{re.escape(TRAINING)}|{re.escape(SAMPLES)}|{re.escape(RESULT)}|{UPDATE}/{SHARDS.pattern}")


def state_folder(state_dir: Path, round: int, attempt: int) -> Path:
    """Where the state of that round and attempt lies, or would lie."""
    return state_dir / "state" / f"{round:06d}-{attempt:04d}"


def find(state_dir: Path, round: int, attempt: int) -> Path | None:
    """The folder of that round's and attempt's state, if it is there and its training.pt is undamaged."""
    folder = state_folder(state_dir, round, attempt)
    try:
        saved = json.loads((folder / RESULT).read_bytes())
        if sha256_file(folder / TRAINING) == saved["training_sha256"]:
            return folder
    except (OSError, ValueError, KeyError):
        pass
    return None


def find_result(state_dir: Path, round: int, attempt: int, key: str) -> Trained | None:
    """The result of that round and attempt, if it is there, of the same job, and its update is undamaged."""
    folder = find(state_dir, round, attempt)
    if folder is None:
        return None
    saved = json.loads((folder / RESULT).read_bytes())
    if saved["key"] != key:
        return None
    trained = _read(saved["trained"], folder)
    for entry in (*trained.files, *trained.moments, *trained.key_layers):
        path = folder / entry.path
        if not path.is_file() or sha256_file(path) != entry.sha256:
            return None
    return trained


def _written(trained: Trained) -> dict[str, Any]:
    """As trained.json has it: without its folder, and without key layers where there are none."""
    values = {field.name: getattr(trained, field.name) for field in dataclasses.fields(trained)}
    values.pop("folder")
    for name in FILES:
        values[name] = [entry.model_dump(mode="json") for entry in values[name]]
    values["entry"] = {layer: one.model_dump(mode="json") for layer, one in trained.entry.items()}
    return values if trained.key_layers else {name: values[name] for name in values if name not in OF_KEY_LAYERS}


def _read(values: dict[str, Any], folder: Path) -> Trained:
    """The inverse of `_written`; early ones have no moments."""
    found = {name: [FileEntry.model_validate(entry) for entry in values.get(name, [])] for name in FILES}
    entry = {layer: Attention.model_validate(one) for layer, one in values.get("entry", {}).items()}
    return Trained(**{**values, **found, "entry": entry}, folder=str(folder))


def find_key_layers(state_dir: Path, round: int, attempt: int, entries: Sequence[FileEntry]) -> list[Path] | None:
    """Where the files of that round's and attempt's key layers lie here; None if one is missing or damaged.

    Args:
        entries: the files, as the update that was committed names them.
    """
    folder = state_folder(state_dir, round, attempt)
    try:
        trained = _read(json.loads((folder / RESULT).read_bytes())["trained"], folder)
        places = {entry.sha256: folder / entry.path for entry in trained.key_layers}
        found = [places[entry.sha256] for entry in entries]
        undamaged = all(sha256_file(path) == entry.sha256 for path, entry in zip(found, entries, strict=True))
        return found if undamaged else None
    except (OSError, ValueError, KeyError):
        return None


def is_outdated(state_dir: Path, job: LocalJob) -> bool:
    """Whether a finished training of this run from the same model lies there, undone by an edit of the file."""
    try:
        saved = json.loads((state_folder(state_dir, job.round, job.attempt) / RESULT).read_bytes())
        same = (saved["run"], saved["trained"]["base_sha256"]) == (job.view.federation.run, job.base_sha256)
        return same and bool(saved["key"] != job.key)
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def exclusive(state_dir: Path) -> Iterator[None]:
    """Let one process at a time train for this site; another waits, and then finds the result."""
    folder = state_dir / "state"
    make_folder(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def writing(state_dir: Path) -> Iterator[Path]:
    """A new folder to write a state into; removed at the end unless `publish` has renamed it.

    Call it under `exclusive`: what earlier writers that were killed have left is removed first.
    """
    parent = state_dir / "state"
    for left in parent.glob(f"{WRITING}*"):
        _clear(left)
    folder = parent / f"{WRITING}{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        _clear(folder)


def settle(folder: Path) -> None:
    """Have a published state survive a power cut, whoever published it: before its update is committed, nothing
    that the next round goes on from may be in memory alone."""
    sync_tree(folder)
    for above in (folder.parent, folder.parent.parent):
        sync_folder(above)


def publish(
    state_dir: Path,
    written: Path,
    trained: Trained,
    key: str,
    resume: tuple[int, int] | None = None,
    run: str = "",
    behind: Sequence[tuple[int, int]] = (),
) -> Trained:
    """Write trained.json into the folder, give it its name, and drop the large files of rounds long past.

    Args:
        state_dir: the site's private folder.
        written: the folder from `writing`, complete but for trained.json.
        trained: the result; its `folder` is set here.
        key: the job's.
        resume: (round, attempt) of the state that it went on from, and that the next one goes on from, too, should
            this update be left out of its round: it stays, however long ago that was.
        run: the federation's.
        behind: (first, last) of rounds that a rollback has left behind: what they have left stays.
    """
    target = state_folder(state_dir, trained.round, trained.attempt)
    training_sha256 = sha256_file(written / TRAINING)
    saved = {"key": key, "run": run, "training_sha256": training_sha256, "trained": _written(trained)}
    (written / RESULT).write_bytes(canonical_json(saved))
    sync_tree(written)
    if target.exists():  # of another job, or damaged: `find_result` has refused it
        discarded = written.with_name(f"{WRITING}{uuid.uuid4().hex}")
        target.rename(discarded)
        _clear(discarded)
    written.rename(target)
    sync_folder(target.parent)
    _prune(target.parent, trained.round, None if resume is None else state_folder(state_dir, *resume), behind)
    return dataclasses.replace(trained, folder=str(target))


def _prune(parent: Path, newest: int, kept: Path | None, behind: Sequence[tuple[int, int]]) -> None:
    """Drop the large files of all but `kept` and the last rounds up to `newest`; results and the audit trail stay.

    Later rounds are of another run with the same folder. Rounds that a rollback has left behind are set aside
    whole: another rollback may come back to them.
    """
    names = {path: FOLDER.fullmatch(path.name) for path in parent.iterdir()}
    folders = {path: int(name[1]) for path, name in names.items() if name and (path / RESULT).is_file()}
    aside = {t for t in folders.values() for first, last in behind if first <= t <= last}
    rounds = sorted({t for t in folders.values() if t <= newest} - aside)
    for path, t in folders.items():
        if t in rounds[:-KEPT_ROUNDS] and path != kept:
            (path / TRAINING).unlink(missing_ok=True)
            with suppress(OSError):
                clear(path / UPDATE, SHARDS)


def _clear(folder: Path) -> None:
    """Remove a folder of a state; what else lies there is not ours, and stays."""
    with suppress(OSError):
        clear(folder, OURS)
