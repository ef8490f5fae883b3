"""Files of a store behind fsspec: S3 and its like, Google's storage, and memory for tests.

Create-only rests on the server (If-None-Match). Some S3 servers take the header and ignore it, so the first
commit of a process tries it out on a throw-away object and refuses a server that lets both writers win.
"""

import io
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, Self

from photon_core.errors import PhotonError, StoreConflict

HIDDEN = "."
CONDITIONAL = {"s3", "s3a", "gs", "gcs"}  # protocols whose pipe_file(mode="create") asks the server
MEMORY_LOCK = Lock()
CONFLICT_RETRIES = 8


class RemoteWriter:
    """An object being written; it appears, whole, when closed."""

    def __init__(self, file: Any, finish: Any = None) -> None:
        self._file: Any = file
        self._finish = finish

    def write(self, data: bytes | bytearray | memoryview) -> int:
        # s3fs keeps a reference to what it is given until the part is sent: hand it bytes of its own
        return int(self._file.write(bytes(data)))

    def close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        if self._finish:
            self._finish(file.getvalue())
        else:
            file.close()

    def discard(self) -> None:
        """Drop what was written; after `close` there is nothing to drop."""
        file, self._file = self._file, None
        if file is not None and hasattr(file, "discard"):
            with suppress(OSError, NotImplementedError):
                file.discard()
            file.closed = True  # or its finaliser would upload what is left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


class RemoteFiles:
    """A store's prefix on an fsspec filesystem. Paths are relative to it and already checked."""

    def __init__(self, url: str, *, single_writer: bool = False, **options: Any) -> None:
        import fsspec

        self.protocol = url.split("://", 1)[0]
        if self.protocol in CONDITIONAL:
            options.setdefault("use_listings_cache", False)
        self.fs, root = fsspec.core.url_to_fs(url, **options)
        self.root = root.rstrip("/")
        self._exclusive = single_writer or self.protocol == "memory"
        self._single_writer = single_writer

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(self._full(path)))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self._full(path), start=start, end=end)) if end > start else b""

    def open_read(self, path: str) -> BinaryIO:
        if self.protocol == "memory":  # its open files share one position
            return io.BytesIO(self.read(path))
        return self.fs.open(self._full(path), "rb", block_size=8 << 20, cache_type="readahead")

    def size(self, path: str) -> int:
        return int(self.fs.info(self._full(path))["size"])

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self._full(path)))

    def ls(self, path: str) -> list[str]:
        folder = self._full(path)
        self.fs.invalidate_cache(folder)
        try:
            children = [str(name).rstrip("/") for name in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        below = folder.lstrip("/") + "/"
        names = {c.lstrip("/")[len(below) :] for c in children if c.lstrip("/").startswith(below)}
        return sorted(name for name in names if name and not name.startswith(HIDDEN))

    def create(self, path: str, data: bytes) -> None:
        if self.protocol == "memory" or (self._single_writer and self.protocol not in CONDITIONAL):
            with MEMORY_LOCK:
                if self.exists(path):
                    raise StoreConflict(f"{self._full(path)} was created by another writer; its content stands")
                self.fs.pipe_file(self._full(path), data)
            return
        if not self._exclusive:
            self._probe(path)
        # A retry inside the client may meet the object that its own lost first answer created.
        if not self._create_if_absent(path, data) and self.read(path) != data:
            raise self._conflict(path)

    def put(self, local_path: Path, path: str) -> None:
        self.fs.put_file(str(local_path), self._full(path))

    def open_write(self, path: str) -> RemoteWriter:
        if self.protocol == "memory":  # its files are seen half-written
            return RemoteWriter(io.BytesIO(), lambda data: self.fs.pipe_file(self._full(path), data))
        return RemoteWriter(self.fs.open(self._full(path), "wb", block_size=16 << 20))

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._full(path))

    def _conflict(self, path: str) -> StoreConflict:
        return StoreConflict(f"{self._full(path)} was created by another writer; its content stands")

    def _create_if_absent(self, path: str, data: bytes) -> bool:
        """Whether this call created the object (False: it was there)."""
        for attempt in range(CONFLICT_RETRIES):
            try:
                self.fs.pipe_file(self._full(path), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                code = _code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                # S3 answers 409 while another conditional write is under way: whoever asks again learns more
                if code not in ("ConditionalRequestConflict", "409") or attempt == CONFLICT_RETRIES - 1:
                    raise
            time.sleep(0.05 * 2**attempt)
        return False

    def _probe(self, path: str) -> None:
        """Refuse a server that lets a second create-only write through."""
        if self.protocol not in CONDITIONAL:
            raise PhotonError(
                f"a store on {self.protocol}:// cannot create files only if absent; use a local folder, "
                "s3:// or gs://, or pass single_writer=True when nothing else ever writes to this run"
            )
        probe = f"{path.rpartition('/')[0]}/{HIDDEN}probe-{uuid.uuid4().hex}"
        self._create_if_absent(probe, b"first")
        second = self._create_if_absent(probe, b"second")
        with suppress(OSError):  # a site may write but not delete
            self.remove(probe)
        if second:
            raise PhotonError(
                f"the server of {self.protocol}://{self.root} ignores If-None-Match, so two writers could "
                "both commit; use one that honours it, or pass single_writer=True when nothing else writes "
                "to this run"
            )
        self._exclusive = True


def _code(error: BaseException) -> str:
    """The server's own error code under an OSError of s3fs."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
