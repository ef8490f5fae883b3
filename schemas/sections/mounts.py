"""Real location of a path on this machine: a folder that is mounted twice (bind mounts) has two names."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLE = Path("/proc/self/mountinfo")
Parts = tuple[str, ...]


class Mount(NamedTuple):
    """A folder of a file system, and its mount point.

    Args:
        device: device of the file system, such as '8:1'.
        root: folder in the file system.
        point: mount point on this machine.
    """

    device: str
    root: Parts
    point: Parts


def seen_twice(table: str | None = None) -> list[Mount]:
    """Mounts of file systems that are mounted more than once; none if the kernel has no mount table.

    Args:
        table: mount table in the kernel's format; this machine's if None.
    """
    try:
        lines = (TABLE.read_text() if table is None else table).splitlines()
    except OSError:
        return []
    mounts = [Mount(fields[2], _parts(fields[3]), _parts(fields[4])) for fields in map(str.split, lines)]
    count = Counter(mount.device for mount in mounts)
    return [mount for mount in mounts if count[mount.device] > 1]


def other_names(path: Parts, mounts: list[Mount]) -> Iterator[tuple[str, Parts]]:
    """Device and folder at a path, and those mounted below it."""
    around = [mount for mount in mounts if path[: len(mount.point)] == mount.point]
    if around:
        mount = max(around, key=lambda mount: len(mount.point))
        yield mount.device, (*mount.root, *path[len(mount.point) :])
    for mount in mounts:
        if len(mount.point) > len(path) and mount.point[: len(path)] == path:
            yield mount.device, mount.root


def _parts(field: str) -> Parts:
    """Parts of a path. The kernel writes spaces and line ends in it as \\040 and \\012."""
    path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
    return tuple(part for part in path.split("/") if part)
