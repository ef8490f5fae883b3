"""Files of a store on a local disk: whole or absent, created once, durable before they are visible.

With a check before the write, several racing writers could win. Here every file is written under a temporary name,
flushed to the disk, and then linked into place: link() fails when the name is taken, so one writer wins.
"""

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from photon_core.errors import CorruptFile, PhotonError, StoreConflict, Unreadable
from photon_core.files import link_once, make_folder, sync_folder, temporary_name
from photon_core.store.interface import Writer

ITS_OWN = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}
HIDDEN = "."  # temporary files and probes start with it; listings omit them


class LocalWriter(Writer):
    """A file written under a temporary name; it appears, whole, on `close`."""

    def __init__(self, target: Path) -> None:
        make_folder(target.parent)
        self._target = target
        self._temporary = temporary_name(target)
        self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._descriptor, view[done:])
        return done

    def close(self) -> None:
        """Flush to the disk and give the file its name.

        Raises:
            StoreConflict: the name is taken.
        """
        if self._descriptor < 0:
            return
        try:
            os.fsync(self._descriptor)
            _link(self._temporary, self._target)
        finally:
            self.discard()
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """Drop what was written. After `close` this does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._temporary.unlink(missing_ok=True)


class LocalRanges:
    """A file's ranges, read into the caller's memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read_into(self, views: Sequence[memoryview], start: int) -> int:
        done = 0
        for view in views:
            at = 0
            while at < len(view) and (count := os.preadv(self._file.fileno(), [view[at:]], start + done + at)):
                at += count
            done += at
        return done

    def close(self) -> None:
        self._file.close()


class LocalFiles:
    """A store's folder on a local or mounted disk. Paths are relative to it and already checked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        with self.open_read(path) as file:
            return file.read()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        with self.open_read(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            return file.read(max(0, min(end, size) - start))  # no buffer for bytes beyond the file's end

    def open_read(self, path: str) -> BinaryIO:
        """Open a plain file only: on a shared disk, anybody may leave a pipe, a device or a link to one."""
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CorruptFile(f"{self.root / path} is a link; files of a store are plain files") from None
            self._refuse(path, error)
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorruptFile(f"{self.root / path} is not a plain file")
        return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - it is the caller's

    def open_ranges(self, path: str) -> LocalRanges:
        return LocalRanges(self.open_read(path))

    def size(self, path: str) -> int:
        try:
            return (self.root / path).stat().st_size
        except OSError as error:
            self._refuse(path, error)
            raise

    def exists(self, path: str) -> bool:
        try:
            return (self.root / path).exists()
        except OSError as error:
            self._refuse(path, error)
            raise

    def _refuse(self, path: str, error: OSError) -> None:
        """Raise Unreadable if the error concerns this one path, not the disk."""
        if error.errno in ITS_OWN:
            raise Unreadable(f"{self.root / path} cannot be read: {error.strerror}") from None

    def ls(self, path: str) -> list[str]:
        try:
            return sorted(p.name for p in (self.root / path).iterdir() if not p.name.startswith(HIDDEN))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def create(self, path: str, data: bytes) -> None:
        with LocalWriter(self.root / path) as file:
            file.write(data)

    def put(self, local_path: Path, path: str) -> None:
        """Link the file itself where the disk supports it, else copy it."""
        target = self.root / path
        make_folder(target.parent)
        with local_path.open("rb") as source:
            os.fsync(source.fileno())
            try:
                link_once(local_path, target)
            except FileExistsError:
                raise StoreConflict(f"{target} already exists") from None
            except OSError:  # another disk, or one without hard links
                with LocalWriter(target) as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        sync_folder(target.parent)

    def open_write(self, path: str) -> LocalWriter:
        return LocalWriter(self.root / path)

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> None:
    try:
        link_once(temporary, target)
    except FileExistsError:
        raise StoreConflict(f"{target} already exists (written by another process); it is kept") from None
    except OSError as error:
        raise PhotonError(
            f"cannot link {target} into place ({error.strerror}); a local store needs a disk with hard links, "
            "which FAT and some network mounts lack: move the store to another disk, or use s3://"
        ) from error
