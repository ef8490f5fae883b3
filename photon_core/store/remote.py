"""Files of a store behind fsspec: S3 and compatible servers, Google Cloud Storage, and memory for tests.

Create-only writes rely on the server (If-None-Match). Some S3 servers accept the header and ignore it, so the
first commit of a process probes the server with a temporary object, and refuses it if both writers win.
Every call has a timeout, and is retried with backoff while the server is unreachable.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any, BinaryIO, TypeVar, cast

from photon_core.errors import FederationError, PhotonError, StoreConflict
from photon_core.store.interface import HIDDEN, Found, Writer, probe_name, walk_remote
from photon_core.store.objects import ObjectRanges, ObjectReader, ObjectWriter
from photon_core.store.retry import RETRY_SECONDS, retry
from photon_core.store.s3 import S3Client
from schemas.server_errors import error_code

T = TypeVar("T")

S3 = {"s3", "s3a"}
CONDITIONAL = S3 | {"gs", "gcs"}  # protocols whose pipe_file(mode="create") asks the server
MEMORY_LOCK = Lock()
CALL_SECONDS = 300.0  # for one request: a part of 16 MiB through a link of 0.5 Mbit/s
DENIED = {"AccessDenied", "403"}  # HTTP 403; the latter where the answer has no body
BRIEFLY = 5.0  # s; for calls that may also fail
CLIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,  # of silence
    "max_pool_connections": 256,  # as many as aggregation.connections can be
    "retries": {"total_max_attempts": 1, "mode": "standard"},  # retry() repeats, with one time limit
}
_LOCK = Lock()
# of this process; fsspec would keep one for each thread, with its connections
_filesystems: dict[str, tuple[Any, S3Client]] = {}
_proven: set[str] = set()  # places whose server has passed the probe of If-None-Match


class SpoolWriter(Writer):
    """A file for servers other than S3: written to an unnamed file in TMPDIR, sent whole on `close`.

    Args:
        send: function that sends the content of a local path; it may be called more than once.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self._file: IO[bytes] | None = tempfile.TemporaryFile()  # noqa: SIM115 - until close
        self._send = send

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if self._file is None:
            raise ValueError("the file is closed")
        return self._file.write(data)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                file.flush()
                self._send(f"/dev/fd/{file.fileno()}")

    def discard(self) -> None:
        """Drop what was written. After `close` this does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class RemoteFiles:
    """A store's prefix on an fsspec filesystem. Paths are relative to it and already checked.

    Args:
        url: URL of the prefix.
        single_writer: flag: accept a server without create-only writes.
        retry_seconds: time limit of a call's retries.
        options: options of fsspec.
    """

    def __init__(
        self, url: str, *, single_writer: bool = False, retry_seconds: float = RETRY_SECONDS, **options: Any
    ) -> None:
        self.protocol = url.split("://", 1)[0]
        self.fs, self._s3, self.root, self._place = _open(url, self.protocol, options)
        self._retry_seconds = retry_seconds
        self._single_writer = single_writer

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def key(self, path: str) -> str:
        """A file's name within its bucket."""
        return self._full(path).partition("/")[2]

    def _do(self, verb: str, path: str, call: Callable[..., T], retry_seconds: float | None = None) -> T:
        """`call(timeout=...)`, with retries."""
        limit = {"timeout": CALL_SECONDS} if self._s3 is not None else {}
        what = f"{verb} {self.protocol}://{self._full(path)}"
        seconds = self._retry_seconds if retry_seconds is None else retry_seconds
        return retry(lambda: call(**limit), what, seconds)

    def read(self, path: str) -> bytes:
        full = self._full(path)
        if self._s3 is not None:
            return self._fetch(path, partial(self._s3.read, full))
        return bytes(self._fetch(path, lambda: self.fs.cat_file(full)))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        if self._s3 is None:
            full = self._full(path)
            return bytes(self._fetch(path, lambda: self.fs.cat_file(full, start=start, end=end)))
        data = bytearray(end - start)
        count = self._read_into(path, [memoryview(data)], start)
        return bytes(memoryview(data)[:count])

    def open_read(self, path: str) -> BinaryIO:
        if self._s3 is None:
            return io.BytesIO(self.read(path)) if self.protocol == "memory" else self.fs.open(self._full(path))
        return cast(BinaryIO, ObjectReader(partial(self._read_into, path)))

    def open_ranges(self, path: str) -> ObjectRanges:
        return ObjectRanges(partial(self._read_into, path))

    def _read_into(self, path: str, views: Sequence[memoryview], start: int) -> int:
        """As Ranges.read_into."""
        if self._s3 is not None:
            return self._fetch(path, partial(self._s3.read_into, self._full(path), views, start))
        data = memoryview(self.read_range(path, start, start + sum(map(len, views))))
        done = 0
        for view in views:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done

    def _fetch(self, path: str, call: Callable[[], T]) -> T:
        what = f"read {self.protocol}://{self._full(path)}"
        return retry(partial(self._or_missing, path, call), what, self._retry_seconds)

    def size(self, path: str) -> int:
        look = partial(self._or_missing, path, partial(self.fs.info, self._full(path)))
        return int(self._do("look at", path, look)["size"])

    def _or_missing(self, path: str, call: Callable[..., T], **limit: Any) -> T:
        """`call(**limit)`. S3 answers 403 instead of 404 for a missing object where the permission to list depends
        on a condition, as in the policy of docs/store.md. Then a listing shows whether the object exists."""
        try:
            return call(**limit)
        except Exception as error:
            if self._s3 is None or error_code(error) not in DENIED or not self._unlisted(path):
                raise
            raise FileNotFoundError(self._full(path)) from None

    def _unlisted(self, path: str) -> bool:
        """Whether the server's listing of this path's prefix lacks the object itself."""
        bucket, _, key = self._full(path).partition("/")
        try:
            first = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1, timeout=CALL_SECONDS)
        except PermissionError:
            return False
        return key not in [found["Key"] for found in first.get("Contents", ())]

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str) -> list[str]:
        folder = self._full(path)
        self.fs.invalidate_cache(folder)
        try:
            found = self._do("list", path, lambda **limit: self.fs.ls(folder, detail=False, **limit))
        except (FileNotFoundError, NotADirectoryError):
            return []
        children = [str(name).rstrip("/") for name in found]
        below = folder.lstrip("/") + "/"
        names = {c.lstrip("/")[len(below) :] for c in children if c.lstrip("/").startswith(below)}
        return sorted(name for name in names if name and not name.startswith(HIDDEN))

    def walk(self, path: str) -> list[Found]:
        folder = self._full(path)
        self.fs.invalidate_cache()
        try:
            found = self._do("list", path, lambda **limit: self.fs.find(folder, detail=True, **limit))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return walk_remote(found, self.root)

    def create(self, path: str, data: bytes) -> None:
        if self.protocol == "memory" or (self._single_writer and self.protocol not in CONDITIONAL):
            with MEMORY_LOCK:
                if self.exists(path):
                    raise self._conflict(path)
                self.fs.pipe_file(self._full(path), data)
            return
        if self._single_writer:
            free = not self.exists(path) and self._create_if_absent(path, data)
        else:
            self._probe(path)
            free = self._create_if_absent(path, data)
        # A retry may find the object that an earlier try created, if that try's answer was lost.
        if not free and self.read(path) != data:
            raise self._conflict(path)

    def put(self, local_path: Path, path: str) -> None:
        if self.exists(path):
            raise self._conflict(path)
        with local_path.open("rb") as source, self.open_write(path) as sink:
            while block := source.read(1 << 20):
                sink.write(block)

    def open_write(self, path: str) -> Writer:
        if self._s3 is None:
            full = self._full(path)
            return SpoolWriter(lambda local: self._do("write", path, lambda: self.fs.put_file(local, full)))

        bucket, _, key = self._full(path).partition("/")

        def call(method: str, retry_seconds: float | None = None, **arguments: Any) -> Any:
            def once(**limit: Any) -> Any:
                try:
                    return self.fs.call_s3(method, Bucket=bucket, Key=key, **arguments, **limit)
                except FileNotFoundError as error:
                    if error_code(error) == "NoSuchBucket":
                        raise self._no_bucket() from None
                    raise

            return self._do(f"write ({method})", path, once, retry_seconds)

        def size() -> int | None:
            return self.size(path) if self.exists(path) else None

        return ObjectWriter(call, size, only_new=not self._single_writer)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._do("remove", path, lambda **limit: self.fs.rm_file(self._full(path), **limit), BRIEFLY)

    def _conflict(self, path: str) -> StoreConflict:
        return StoreConflict(f"{self._full(path)} already exists (written by another process); it is kept")

    def _no_bucket(self) -> PhotonError:
        bucket = self.root.partition("/")[0]
        return PhotonError(
            f"{self.protocol}://{self.root}: there is no bucket '{bucket}'; create it, or correct the file's store"
        )

    def _create_if_absent(self, path: str, data: bytes) -> bool:
        """Whether this call created the object (False: it existed)."""

        def create(**limit: Any) -> None:
            self.fs.pipe_file(self._full(path), data, mode="create", **limit)

        try:
            self._do("create", path, create)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise self._no_bucket() from None
        except OSError as error:
            code = error_code(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code in ("NotImplemented", "501"):
                raise self._unsafe("does not support") from None
            raise
        return True

    def _unsafe(self, verb: str) -> PhotonError:
        return PhotonError(
            f"the server of {self.protocol}://{self.root} {verb} If-None-Match, so two writers could both commit; "
            "use a server that honours it, or write storage: {single_writer: true} if only one process ever "
            "writes to this run"
        )

    def _probe(self, path: str) -> None:
        """Refuse a server that accepts a second create-only write.

        Raises:
            PhotonError: the server, or its protocol, has no create-only writes.
        """
        if self._place in _proven:
            return
        if self.protocol not in CONDITIONAL:
            raise PhotonError(
                f"a store on {self.protocol}:// has no create-only writes; use a local folder, s3:// or gs://, or "
                "write storage: {single_writer: true} if only one process ever writes to this run"
            )
        # beside the object to be committed: a site may write nowhere else
        probe = f"{path.rpartition('/')[0]}/{probe_name()}"
        self._create_if_absent(probe, b"first")
        second = self._create_if_absent(probe, b"second")
        with suppress(OSError, PhotonError):  # a site may write but not delete
            self.remove(probe)
        if second:
            raise self._unsafe("ignores")
        _proven.add(self._place)


def _open(url: str, protocol: str, options: dict[str, Any]) -> tuple[Any, S3Client | None, str, str]:
    """The filesystem, its S3 client if it is S3, the root on it, and their key in this process."""
    import fsspec

    key = f"{os.getpid()} {protocol} {json.dumps(options, sort_keys=True, default=repr)}"
    if protocol in CONDITIONAL:
        options = {"use_listings_cache": False, **options}
    if protocol in S3:
        options = options | {
            "config_kwargs": CLIENT | options.get("config_kwargs", {}),
            "skip_instance_cache": True,
        }
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise FederationError(
            f"'{url}' cannot be opened ({error}); write a path, or a URL such as s3://bucket/folder"
        ) from None
    with _LOCK:
        if protocol not in S3:
            client = None
            fs, root = fsspec.core.url_to_fs(url, **options)
        else:
            if key not in _filesystems:
                fs = fsspec.filesystem(protocol, **options)
                fs.retries = 1
                _filesystems[key] = fs, S3Client(fs, CALL_SECONDS)
            fs, client = _filesystems[key]
            root = fs._strip_protocol(url)
    root = str(root).rstrip("/")
    return fs, client, root, f"{key} {root.partition('/')[0]}"
