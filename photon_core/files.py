"""Atomic, durable files: a file is whole or absent, and on the disk before anything relies on it.

Every file is written under a temporary name and flushed to the disk. It then gets its final name: by rename()
where it replaces an older file, by link() where the first writer's file is kept.
"""

import fcntl
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from photon_core.errors import PhotonError

TEMPORARY = re.compile(r"\.([0-9a-f]{64}\.)?[0-9a-f]{32}\.tmp")  # older ones of downloads hold the file's hash
BLOCK = 1 << 20


def temporary_name(target: Path) -> Path:
    """A unique name in the target's folder."""
    return target.with_name(f".{uuid.uuid4().hex}.tmp")


def write_whole(path: Path, data: bytes, *, mode: int = 0o644, once: bool = False) -> None:
    """Write a file of these bytes, with the options of `whole_file`."""
    with whole_file(path, mode=mode, once=once) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, mode: int = 0o644, once: bool = False) -> Iterator[BinaryIO]:
    """A new file, open for writing. At the end of the block it is durable under its name. An error in the block
    leaves nothing new.

    Args:
        path: name of the file, in an existing folder.
        mode: permissions, before the umask.
        once: flag: keep an existing file, which the new one replaces otherwise.

    Raises:
        FileExistsError: with `once`, another file has the name.
    """
    temporary = temporary_name(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - it is open already
            yield file
            file.flush()
            os.fsync(descriptor)
            written = os.fstat(descriptor).st_ino
        if once:
            link_once(temporary, path)
        else:
            _rename(temporary, path, written)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _rename(source: Path, target: Path, inode: int) -> None:
    """Rename a file. A lost answer is a success, as in `link_once`: the repeated request finds no source."""
    try:
        source.replace(target)
    except FileNotFoundError:
        if target.lstat().st_ino != inode:
            raise


def link_once(source: Path, target: Path) -> None:
    """Give a file a second name, which must be free.

    An NFS client whose answer was lost repeats the request, and the server refuses because of the client's own
    link. So a name that holds the source's content is a success.

    Raises:
        FileExistsError: something else has the name.
        OSError: the disk does not support hard links, or has failed.
    """
    try:
        os.link(source, target)
    except OSError:
        if not _holds_the_same(target, source):
            raise


def _holds_the_same(target: Path, source: Path) -> bool:
    try:
        existing, ours = target.lstat(), source.lstat()
        if (existing.st_dev, existing.st_ino) == (ours.st_dev, ours.st_ino):
            return True
        if not stat.S_ISREG(existing.st_mode) or existing.st_size != ours.st_size:
            return False
        with target.open("rb") as first, source.open("rb") as second:
            while (block := first.read(BLOCK)) == second.read(BLOCK):
                if not block:
                    return True
    except OSError:
        pass
    return False


def make_folder(folder: Path) -> None:
    """Create the folder and its parents, durably.

    Raises:
        PhotonError: a file has its name.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise PhotonError(f"{folder} is a file; a folder is needed in its place") from None
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    _sync(folder, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Make a folder with all files and folders in it survive a power cut."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place, name)
            if stat.S_ISREG(path.lstat().st_mode):
                _sync(path)
        sync_folder(Path(place))


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive advisory lock of an existing folder, after waiting for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def clear(folder: Path, ours: re.Pattern[str]) -> bool:
    """Remove a folder's files whose relative path matches, and then every empty folder.

    Links are never followed. What does not match is kept, with its folders.

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
    """Remove these files below a folder, then the subfolders that this leaves empty.

    A file that a link outside the folder leads to is not the listed file, and is kept.
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
