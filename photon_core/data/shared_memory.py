"""Shared memory of streaming's datasets: distinct names for each dataset, and nothing left behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as numbers_from
from pathlib import Path
from typing import Any

from photon_core.files import folder_lock

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def shared_memory_lock() -> Iterator[None]:
    """Hold the machine-wide lock for allocating and releasing names under /dev/shm.

    The lock is on the folder itself: it leaves no file behind and ends with its process. Under a launcher only the
    first rank of each node takes it, because the other ranks wait for that one inside the constructor.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    with folder_lock(SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path("/tmp")):
        yield


@contextmanager
def free_prefixes_only() -> Iterator[None]:
    """Make streaming allocate a number under which /dev/shm holds nothing.

    By itself, streaming looks for the first free number of each of its names and takes the greatest of these. If a
    killed process has left another name under that number, every later dataset fails with FileExistsError.
    """
    from streaming.base.shared import prefix

    every = prefix._each_prefix_int
    if SHARED_MEMORY.is_dir():
        prefix._each_prefix_int = lambda: (n for n in numbers_from() if not any(SHARED_MEMORY.glob(f"{n:06d}_*")))
    try:
        yield
    finally:
        prefix._each_prefix_int = every


def shm_prefix(dataset: Any) -> str:
    """The prefix of the dataset's names under /dev/shm, such as '000003_'."""
    return f"{dataset._shm_prefix_int:06d}_"


def release(dataset: Any, whole: bool = True) -> None:
    """Release the dataset's names under /dev/shm and its lock files. It must not be iterated again.

    Args:
        dataset: dataset of this process.
        whole: flag: release all names; otherwise only those that this process, and no other rank, has created.
    """
    from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK
    from streaming.base.shared import SharedArray, SharedMemory, SharedScalar

    prefix = shm_prefix(dataset)
    parts = [*vars(dataset).values(), getattr(dataset._shared_barrier, "_arr", None)]
    arrays = [part.arr if isinstance(part, SharedScalar) else part for part in parts]
    memories = [array.shm if isinstance(array, SharedArray) else array for array in arrays]
    with shared_memory_lock():
        for memory in memories:
            if isinstance(memory, SharedMemory):
                _unlink(memory.created_shms)
                # the exit handler would unlink the names again, which may belong to another dataset by then
                memory.created_shms.clear()
        if not whole:
            return
        for path in SHARED_MEMORY.glob(prefix + "*"):
            path.unlink(missing_ok=True)
        for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
            # otherwise every later dataset would have to look for a higher number
            (Path(dataset._filelock_root) / f"{prefix}{name}").unlink(missing_ok=True)


def _unlink(memories: list[Any]) -> None:
    for memory in memories:
        try:
            memory.unlink()
        except FileNotFoundError:
            continue
