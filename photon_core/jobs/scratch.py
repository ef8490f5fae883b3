"""Temporary folders and shared memory of child processes, and their removal after a child was killed.

A killed child cannot clean up. So every child works in its own folder (its TMPDIR), and records there which
shared-memory files it has created, with their inode numbers. The name alone does not suffice: streaming takes the
smallest free number as a file's name, which may belong to another process by the time of the removal.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LEDGER = "shared-memory"
LOCK = "lock"
PREFIX = "photon-scratch-"


def create_scratch() -> tuple[Path, int]:
    """A new scratch folder, and the descriptor of its lock, which is held as long as any process has it open.

    Returns:
        The folder, and a file descriptor that only the fork server may inherit.
    """
    sweep_scratch()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getuid()}-"))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # another process swept it before this one had the lock


def sweep_scratch() -> None:
    """Remove the scratch folders of dead launchers, and the shared memory that is recorded in them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            info = folder.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                continue  # another user may create a link of such a name
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for job in folder.iterdir():
                    remove_job(job)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_job(folder: Path, forget: Callable[[str], None] | None = None) -> None:
    """Remove a dead child's shared memory and its folder.

    Args:
        folder: TMPDIR of the child.
        forget: callback with the name of each shared-memory file that the child has not removed itself.
    """
    for ledger in folder.rglob(f"{LEDGER}*"):  # the child's, and those of processes that it started
        for name, inode in _ledger(ledger).items():
            path = SHARED_MEMORY / name.lstrip("/")
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
            if forget is not None and ledger == folder / LEDGER:
                forget(name)
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def keep_ledger(folder: Path, name: str = LEDGER) -> None:
    """From now on record in `folder` which shared-memory files this process creates and removes.

    Every creation and removal calls the resource tracker's functions.
    """
    ledger = (folder / name).open("a", buffering=1)
    register, unregister = resource_tracker.register, resource_tracker.unregister

    def noted_register(name: str, rtype: str) -> None:
        if rtype == "shared_memory":
            with contextlib.suppress(OSError):
                ledger.write(f"+ {name} {(SHARED_MEMORY / name.lstrip('/')).stat().st_ino}\n")
        register(name, rtype)

    def noted_unregister(name: str, rtype: str) -> None:
        unregister(name, rtype)
        if rtype == "shared_memory":
            ledger.write(f"- {name} 0\n")

    resource_tracker.register = noted_register  # type: ignore[assignment]
    resource_tracker.unregister = noted_unregister  # type: ignore[assignment]


def _ledger(path: Path) -> dict[str, int]:
    """Names and inodes of shared-memory files that were created and not removed."""
    left: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            parts = line.split(" ")
            if len(parts) == 3 and parts[0] == "+" and parts[2].isdigit():
                left[parts[1]] = int(parts[2])
            elif len(parts) == 3:
                left.pop(parts[1], None)
    return left
