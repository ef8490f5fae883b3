"""The interface of a store's backend: files written whole, files read in ranges, lists with sizes and ages."""

import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

HIDDEN = "."  # temporary files and probes start with it; listings omit them
TEMPORARY = re.compile(r"\.(probe-[0-9a-f]{32}|[0-9a-f]{32}\.tmp)")


def probe_name() -> str:
    """A new name for a file that probes a store and is removed at once; `photon gc` removes one that remains."""
    return f"{HIDDEN}probe-{uuid.uuid4().hex}"


class Writer(ABC):
    """A binary file, written sequentially: whole after `close`, absent after `discard` or an error."""

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> int: ...

    @abstractmethod
    def close(self) -> None:
        """Give the file its name.

        Raises:
            StoreConflict: the name is taken.
        """

    @abstractmethod
    def discard(self) -> None:
        """Drop what was written. After `close` this does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


class Found(NamedTuple):
    """A file of a store.

    Args:
        path: path relative to the store.
        bytes: size.
        modified: time of the last change, seconds since the epoch.
    """

    path: str
    bytes: int
    modified: float


def walk_local(root: Path, path: str) -> list[Found]:
    """Plain files below root/path, sorted by path.

    A file that vanishes during the walk was another writer's temporary file. Unreadable folders are skipped.
    """
    found = []
    for folder, _, names in os.walk(root / path):
        for name in names:
            file = Path(folder, name)
            try:
                info = file.lstat()
            except (FileNotFoundError, PermissionError, NotADirectoryError):
                continue
            found.append(Found(file.relative_to(root).as_posix(), info.st_size, info.st_mtime))
    return sorted(found)


def walk_remote(infos: Mapping[str, Mapping[str, Any]], root: str) -> list[Found]:
    """`walk_local`, from the answer of fsspec's `find(detail=True)` for a folder below `root`."""
    below = root.strip("/") + "/"
    found = []
    for name, info in infos.items():
        path = str(name).lstrip("/")
        if info.get("type") == "file" and path.startswith(below):
            found.append(Found(path[len(below) :], int(info["size"] or 0), _modified(info)))
    return sorted(found)


def _modified(info: Mapping[str, Any]) -> float:
    """Seconds since the epoch. A file without a known time counts as new."""
    for key in ("LastModified", "mtime", "updated", "created"):
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return float("inf")


class Ranges(Protocol):
    """A file read in ranges, by several threads at once."""

    def read_into(self, views: Sequence[memoryview], start: int) -> int:
        """Fill one view after the other with the bytes from `start` on.

        Returns:
            Number of bytes; fewer than fit only where the file ends before.
        """

    def close(self) -> None: ...
