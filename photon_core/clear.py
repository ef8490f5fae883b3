"""Removing what Photon made, and nothing else: files whose names our own code gives, or a record of ours holds."""

import os
import re
from pathlib import Path


def clear(folder: Path, ours: re.Pattern[str]) -> bool:
    """Remove a folder's files whose path below it matches, and then every folder that is empty.

    Links are never followed; what does not match stays, with the folders that it is in.

    Returns:
        Whether the folder is gone.
    """
    if folder.is_symlink() or not folder.is_dir():
        return not os.path.lexists(folder)
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place, name)
            if ours.fullmatch(path.relative_to(folder).as_posix()):
                path.unlink()
        if not os.listdir(place):  # noqa: PTH208 - os.walk gives names
            Path(place).rmdir()
    return not folder.exists()


def remove_listed(root: Path, paths: list[str]) -> None:
    """Remove these files below a folder, then the folders that are empty without them; the folder itself stays.

    A file that a link leads to, out of the folder, is not the one that was listed, and stays.
    """
    inside = root.resolve()
    for name in paths:
        path = root / name
        if path.parent.resolve().is_relative_to(inside) and (path.is_file() or path.is_symlink()):
            path.unlink()
    for place in sorted({above for name in paths for above in (root / name).parents}, reverse=True):
        inner = place != root and place.is_relative_to(root) and place.is_dir() and not place.is_symlink()
        if inner and not any(place.iterdir()):
            place.rmdir()
