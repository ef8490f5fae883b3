"""The store of all rounds, and its commit rule: a folder, s3:// or memory:// behind one small interface.

Nothing in a store is ever overwritten. Data files are written under new names and are unreferenced until a
manifest names them. A manifest is created only if absent, whole or not at all (`Store.create`), so that exactly
one of racing writers wins. That single call is every commit of a federation.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from photon_core.errors import CorruptFile, PhotonError, StoreConflict
from photon_core.files import whole_file
from photon_core.hashing import BLOCK, Check
from photon_core.store.interface import Found, Ranges, Writer, walk_local
from photon_core.store.local import LocalFiles
from photon_core.store.remote import RemoteFiles

if TYPE_CHECKING:
    from schemas.manifests import FileEntry

SHA256 = re.compile(r"[0-9a-f]{64}")
PATH_LIMIT = 800  # bytes
FIRST = 1 << 20  # bytes of a small file's first request: a server's answer needs a buffer of its size
KEY_LIMIT = 1024  # bytes of an object's name on S3, with the store's prefix


def _nothing() -> None:
    pass


class Store:
    """A prefix on a filesystem. Every path is relative to it, with forward slashes, and cannot leave it.

    Args:
        url: folder, or file://, s3://, gs:// or memory:// URL.
        storage_options: options of fsspec (endpoint_url, ...); credentials come from the environment.
            single_writer=True accepts a server without create-only writes, for runs with only one writing
            process. retry_seconds limits the retries of a call.
    """

    def __init__(self, url: str, **storage_options: Any) -> None:
        protocol, separator, rest = url.partition("://")
        self._options = storage_options
        self._files: LocalFiles | RemoteFiles
        if not separator or protocol in ("file", "local"):
            root = Path(rest if separator else url).expanduser().absolute()
            self.url = str(root)
            self._files = LocalFiles(root)
        else:
            self.url = url.rstrip("/")
            self._files = RemoteFiles(url, **storage_options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.url, self._options)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def is_local(self) -> bool:
        return isinstance(self._files, LocalFiles)

    def locate(self, path: str) -> str:
        """The full path or URL of a file, for people and messages."""
        return f"{self.url}/{check_path(path)}"

    def _path(self, path: str) -> str:
        """The path itself, if it is valid in this store.

        Raises:
            PhotonError: it leaves the store or is too long.
        """
        check_path(path)
        files = self._files
        if isinstance(files, RemoteFiles) and _bytes(files.key(path)) > KEY_LIMIT:
            raise PhotonError(
                f"{path[:200]!r} is too long for {self.url}: with the store's own prefix, a name has at most "
                f"{KEY_LIMIT} bytes"
            )
        return path

    def read(self, path: str, limit: int | None = None) -> bytes:
        """A small file's bytes.

        Raises:
            FileNotFoundError: the file does not exist.
            CorruptFile: the file is larger than `limit` bytes.
        """
        self._path(path)
        if limit is None:
            return self._files.read(path)
        data = self._files.read_range(path, 0, min(FIRST, limit + 1))  # whatever size the server claims
        if len(data) == FIRST:
            data += self._files.read_range(path, FIRST, limit + 1)
        if len(data) > limit:
            size = self._files.size(path)
            raise CorruptFile(f"{self.locate(path)} holds {size} bytes; at most {limit} are expected")
        return data

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes start to end of a file; fewer where the file ends before."""
        return self._files.read_range(self._path(path), start, end)

    def open_read(self, path: str) -> BinaryIO:
        """A file for sequential reading (`readinto`, `read`, `seek`)."""
        return self._files.open_read(self._path(path))

    def open_ranges(self, path: str) -> Ranges:
        """A file for reading in ranges, by several threads at once."""
        return self._files.open_ranges(self._path(path))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return self._files.size(self._path(path))

    def exists(self, path: str) -> bool:
        return self._files.exists(self._path(path))

    def ls(self, path: str) -> list[str]:
        """Names of a folder's children, sorted, without temporary ones; [] where there is no such folder."""
        return self._files.ls(self._path(path) if path else "")

    def walk(self, path: str) -> list[Found]:
        """Every file below a folder, with temporary ones, sorted by path."""
        self._path(path)
        files = self._files
        return walk_local(files.root, path) if isinstance(files, LocalFiles) else files.walk(path)

    def create(self, path: str, data: bytes) -> None:
        """Commit: the file appears whole, if and only if it was absent.

        On object stores, exactly these bytes under the name are a success: they may be from an earlier try.

        Raises:
            StoreConflict: the file exists; its content is kept.
        """
        self._files.create(self._path(path), data)

    def put(self, local_path: str | Path, path: str) -> None:
        """Upload a finished data file under a new name. On the same disk it is linked, not copied: the caller
        must never write to `local_path` again.

        Raises:
            StoreConflict: the name is taken (a race is noticed on local disks only).
        """
        self._files.put(Path(local_path), self._path(path))

    def open_write(self, path: str) -> Writer:
        """Write a data file under a new name, in pieces; it is invisible until it is whole."""
        return self._files.open_write(self._path(path))

    def discard(self, path: str) -> None:
        """Remove the caller's own unreferenced file, or a file that `photon gc` collects. Nothing else."""
        self._files.remove(self._path(path))

    def fetch(self, entry: "FileEntry", folder: str, cache_dir: Path) -> Path:
        """A local path of the file that a manifest covers, its size and hash verified.

        Args:
            entry: manifest entry of the file.
            folder: folder of the manifest in the store; `entry.path` is relative to it.
            cache_dir: download cache, by hash.

        Raises:
            CorruptFile: the file's bytes are not those that the manifest covers.
        """
        path = self._path(f"{folder}/{check_path(entry.path)}")
        if isinstance(self._files, LocalFiles):
            self.check(entry, folder)
            return self._files.root / path
        if not SHA256.fullmatch(entry.sha256):
            raise CorruptFile(f"the manifest's sha256 of {self.locate(path)} is not a hash: {entry.sha256[:80]!r}")
        cached = cache_dir / entry.sha256
        try:
            _verify(cached, entry, str(cached))
            return cached
        except CorruptFile:
            cached.unlink(missing_ok=True)
        self._download(path, entry, cached)
        return cached

    def fetch_all(
        self, entries: "Sequence[FileEntry]", folder: str, cache_dir: Path, connections: int
    ) -> list[Path]:
        """`fetch` of every file of a manifest, up to `connections` at a time."""
        with ThreadPoolExecutor(max(1, min(connections, len(entries))), "fetch") as pool:
            return list(pool.map(lambda entry: self.fetch(entry, folder, cache_dir), entries))

    def check(self, entry: "FileEntry", folder: str, beat: Callable[[], None] = _nothing) -> None:
        """Read a file that a manifest covers, in bounded memory, and compare its size and hash.

        Args:
            entry, folder: file and its manifest's folder, as for `fetch`.
            beat: callback after each block; what it raises ends the reading.

        Raises:
            CorruptFile: the file is missing, or its bytes are not those that the manifest covers.
        """
        path = self._path(f"{folder}/{check_path(entry.path)}")
        check, size = Check(entry.sha256, entry.blake3), 0
        with _named(self.locate(path)), self.open_read(path) as source:
            while size <= entry.bytes and (block := source.read(BLOCK)):
                beat()
                check.update(block)
                size += len(block)
        _compare(size, check, entry, self.locate(path))

    def _download(self, path: str, entry: "FileEntry", target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        check, size = Check(entry.sha256, entry.blake3), 0
        with whole_file(target) as sink:
            with _named(self.locate(path)), self.open_read(path) as source:
                # never more than the manifest states: a huge file is refused before it fills the disk
                while size <= entry.bytes and (block := source.read(BLOCK)):
                    sink.write(block)
                    check.update(block)
                    size += len(block)
            _compare(size, check, entry, self.locate(path))


class _named:
    """Turns a missing file into CorruptFile: a manifest covers it, so it must exist."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FileNotFoundError):
            raise CorruptFile(f"{self.name} is missing, although a manifest covers it") from error


def check_path(path: str) -> str:
    """The path itself, if it stays inside the store.

    Raises:
        PhotonError: the path is empty, absolute, or holds '..', '.', an empty part, a backslash or a control
            character.
    """
    parts = path.split("/")
    names = all(part not in ("", ".", "..") and _bytes(part) <= 255 for part in parts)
    if not names or "\\" in path or not path.isprintable() or _bytes(path) > PATH_LIMIT:
        raise PhotonError(
            f"{path[:200]!r} is not a path inside the store: write names of at most 255 bytes joined by '/', "
            f"{PATH_LIMIT} in all, without '..', '.', backslashes, control characters or a leading '/'"
        )
    return path


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def _verify(local: Path, entry: "FileEntry", name: str) -> None:
    check = Check(entry.sha256, entry.blake3)
    with _named(name):
        size = local.stat().st_size
        with local.open("rb") as file:
            while size == entry.bytes and (block := file.read(BLOCK)):
                check.update(block)
    _compare(size, check, entry, name)


def _compare(size: int, check: Check, entry: "FileEntry", name: str) -> None:
    if size != entry.bytes:
        raise CorruptFile(f"{name} holds {size} bytes (or more); its manifest says {entry.bytes}")
    if check.hexdigest() != check.expected:
        raise CorruptFile(
            f"{name} has {check.name} {check.hexdigest()[:16]}...; its manifest says {check.expected[:16]}..."
        )


def _rebuild(url: str, options: dict[str, Any]) -> Store:
    return Store(url, **options)


__all__ = ["SHA256", "Ranges", "Store", "StoreConflict", "Writer", "check_path"]
