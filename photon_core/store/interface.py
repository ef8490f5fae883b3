"""What a backend of a store offers: files written whole, files read in ranges, lists with sizes and ages."""

import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

HIDDEN = "."  # temporary files and probes start with it; listings leave them out
TEMPORARY = re.compile(r"\.(probe-[0-9a-f]{32}|[0-9a-f]{32}\.tmp)")


def probe_name() -> str:
    """A fresh name for a file that tries a store out and goes at once; should it stay, `photon gc` takes it."""
    return f"{HIDDEN}probe-{uuid.uuid4().hex}"


class Writer(ABC):
    """A binary file, written from front to back: whole on `close`, not there after `discard` or an error."""

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
        """Drop what was written; after `close` there is nothing to drop."""

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
        path: relative to the store.
        bytes: its size.
        modified: seconds since the epoch.
    """

    path: str
    bytes: int
    modified: float


def walk_local(root: Path, path: str) -> list[Found]:
    """Plain files below root/path, sorted by path.

    What vanishes while it looks was another's temporary file; where a stranger lets nobody look, nothing is found.
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
    """The same from what fsspec's `find(detail=True)` answered for a folder below `root`."""
    below = root.strip("/") + "/"
    found = []
    for name, info in infos.items():
        path = str(name).lstrip("/")
        if info.get("type") == "file" and path.startswith(below):
            found.append(Found(path[len(below) :], int(info["size"] or 0), _modified(info)))
    return sorted(found)


def _modified(info: Mapping[str, Any]) -> float:
    """A file without a known time counts as new."""
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
    """A file read in ranges, by several threads side by side."""

    def read_into(self, views: Sequence[memoryview], start: int) -> int:
        """Bytes from `start` on, one view after the other; how many: fewer only where the file ends before."""

    def close(self) -> None: ...
