"""Where a path of this machine really lies: a folder that is mounted twice (bind mounts) has two names."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLE = Path("/proc/self/mountinfo")
Parts = tuple[str, ...]


class Mount(NamedTuple):
    """A folder of a file system, and where it is seen.

    Args:
        device: of the file system, such as '8:1'.
        root: the folder in it.
        point: where this machine has it.
    """

    device: str
    root: Parts
    point: Parts


def seen_twice(table: str | None = None) -> list[Mount]:
    """The mounts of file systems that are mounted more than once; nothing where the kernel does not tell.

    Args:
        table: as the kernel writes it; this machine's if None.
    """
    try:
        lines = (TABLE.read_text() if table is None else table).splitlines()
    except OSError:
        return []
    mounts = [Mount(fields[2], _parts(fields[3]), _parts(fields[4])) for fields in map(str.split, lines)]
    count = Counter(mount.device for mount in mounts)
    return [mount for mount in mounts if count[mount.device] > 1]


def other_names(path: Parts, mounts: list[Mount]) -> Iterator[tuple[str, Parts]]:
    """Device and folder of what lies at a path, and of what is mounted below it."""
    around = [mount for mount in mounts if path[: len(mount.point)] == mount.point]
    if around:
        mount = max(around, key=lambda mount: len(mount.point))
        yield mount.device, (*mount.root, *path[len(mount.point) :])
    for mount in mounts:
        if len(mount.point) > len(path) and mount.point[: len(path)] == path:
            yield mount.device, mount.root


def _parts(field: str) -> Parts:
    """The parts of a path whose spaces and line ends the kernel writes as \\040 and \\012."""
    path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
    return tuple(part for part in path.split("/") if part)
