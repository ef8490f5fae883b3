"""The site's private state, which one round of local training stores for the next. It never leaves the site.

    <state_dir>/state/000007-0001/training.pt       optimizer, stream position, random number generators
                                  samples.u32       numbers of the samples trained, in order (see callback.py)
                                  update/           the encoded update, until it is uploaded
                                  trained.json      the result, and the hashes of the above

A folder appears atomically: it is written under another name and renamed.
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

from photon_core.evidence.events import fact_of
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
WRITING = ".writing-"  # prefix of folders that are being written, or replaced
SHARDS = re.compile(r"[^/]+\.safetensors")
FOLDER = re.compile(r"(\d{6,})-\d{4,}")
OURS = re.compile(rf"{re.escape(TRAINING)}|{re.escape(SAMPLES)}|{re.escape(RESULT)}|{UPDATE}/{SHARDS.pattern}")


def state_folder(state_dir: Path, round: int, attempt: int) -> Path:
    """The folder for the state of that round and attempt, whether it exists or not."""
    return state_dir / "state" / f"{round:06d}-{attempt:04d}"


def find(state_dir: Path, round: int, attempt: int) -> Path | None:
    """The folder with the state of that round and attempt, if it exists and its training.pt is undamaged."""
    folder = state_folder(state_dir, round, attempt)
    try:
        saved = json.loads((folder / RESULT).read_bytes())
        if sha256_file(folder / TRAINING) == saved["training_sha256"]:
            return folder
    except (OSError, ValueError, KeyError):
        pass
    return None


def find_result(state_dir: Path, round: int, attempt: int, key: str) -> Trained | None:
    """The result of that round and attempt, if it exists, belongs to the same job, and its update is undamaged."""
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
    values["notes"] = [note.record() for note in trained.notes]
    for name in FILES:
        values[name] = [entry.model_dump(mode="json") for entry in values[name]]
    values["entry"] = {layer: one.model_dump(mode="json") for layer, one in trained.entry.items()}
    return values if trained.key_layers else {name: values[name] for name in values if name not in OF_KEY_LAYERS}


def _read(values: dict[str, Any], folder: Path) -> Trained:
    """The inverse of `_written`; early ones have no moments."""
    found = {name: [FileEntry.model_validate(entry) for entry in values.get(name, [])] for name in FILES}
    entry = {layer: Attention.model_validate(one) for layer, one in values.get("entry", {}).items()}
    notes = [fact_of(note) for note in values.get("notes", [])]
    return Trained(**{**values, **found, "entry": entry, "notes": notes}, folder=str(folder))


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
    """Whether the folder has a finished training of this run from the same model that an edit of the file made
    obsolete."""
    try:
        saved = json.loads((state_folder(state_dir, job.round, job.attempt) / RESULT).read_bytes())
        same = (saved["run"], saved["trained"]["base_sha256"]) == (job.view.federation.run, job.base_sha256)
        return same and bool(saved["key"] != job.key)
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def exclusive(state_dir: Path) -> Iterator[None]:
    """Lock the state: one process at a time trains for this site. Another process waits, then finds the result."""
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
    """A new folder to write a state into. It is removed at the end unless `publish` has renamed it.

    Call it under `exclusive`: it first removes the folders of earlier writers that were killed.
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
    """Sync a published state to the disk, so that it survives a power cut.

    Call it before the update is committed, whichever process has published the state: the next round resumes from
    it.
    """
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
    """Write trained.json into the folder, give it its final name, and remove the large files of old rounds.

    Args:
        state_dir: private folder of the site.
        written: folder from `writing`, complete apart from trained.json.
        trained: result of the training; its `folder` is set here.
        key: key of the job.
        resume: (round, attempt) of the state that training resumed from. That state is kept, however old it is:
            the next training resumes from it, too, if this update is excluded from its round.
        run: name of the run.
        behind: (first, last) of ranges of rolled-back rounds, whose states are kept.
    """
    target = state_folder(state_dir, trained.round, trained.attempt)
    training_sha256 = sha256_file(written / TRAINING)
    saved = {"key": key, "run": run, "training_sha256": training_sha256, "trained": _written(trained)}
    (written / RESULT).write_bytes(canonical_json(saved))
    sync_tree(written)
    if target.exists():  # it belongs to another job, or is damaged: `find_result` has refused it
        discarded = written.with_name(f"{WRITING}{uuid.uuid4().hex}")
        target.rename(discarded)
        _clear(discarded)
    written.rename(target)
    sync_folder(target.parent)
    _prune(target.parent, trained.round, None if resume is None else state_folder(state_dir, *resume), behind)
    return dataclasses.replace(trained, folder=str(target))


def _prune(parent: Path, newest: int, kept: Path | None, behind: Sequence[tuple[int, int]]) -> None:
    """Remove the large files of all states but `kept` and the last rounds up to `newest`.

    Results and the audit trail are kept.

    Rounds after `newest` belong to another run with the same folder. Rolled-back rounds do not count, and are kept
    whole: another rollback may return to them.
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
    """Remove the folder of a state. Files with other names are not Photon's, and are kept."""
    with suppress(OSError):
        clear(folder, OURS)
