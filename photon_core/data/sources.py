"""A stream's raw files: listing them, their fingerprints, and reading their bytes."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from photon_core.errors import DataError
from photon_core.store.retry import connection_errors
from schemas.server_errors import told

KINDS = (".jsonl", ".txt", ".parquet")
PACKED = (".gz", ".zst")
CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One raw file of a stream.

    Attributes:
        name: path or URL for messages.
        kind: file ending without compression, such as .jsonl.
        packed: ending of the compression, or empty.
        fingerprint: values that change with the file (size and time, or the server's tag).
        filesystem: fsspec filesystem of the file.
        path: path on that filesystem.
    """

    name: str
    kind: str
    packed: str
    fingerprint: tuple[str, ...]
    filesystem: Any
    path: str


def list_files(source: str, options: Mapping[str, Any] | None = None) -> list[SourceFile]:
    """The raw files that a stream's source names, sorted by name.

    Args:
        source: path or fsspec URL of a file, a glob, or a folder (all its .jsonl, .txt and .parquet files).
        options: keyword arguments of the filesystem.

    Raises:
        DataError: there is no file, or a file has an unknown ending.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(source, **(options or {}))
        paths = _expand(filesystem, path)
        files = [_describe(filesystem, p) for p in sorted(paths)]
    except DataError:
        raise
    except Exception as error:  # each filesystem raises its own errors
        raise DataError(f"{source}: cannot be listed ({told(error)})") from None
    if not files:
        raise DataError(
            f"{source}: no file found; write a path, glob or URL of {' '.join(KINDS)} files, "
            f"the first two also with {' or '.join(PACKED)}"
        )
    return files


@contextmanager
def open_file(file: SourceFile, digest: Any = None) -> Iterator[BinaryIO]:
    """The file's content, decompressed, as a buffered stream.

    Args:
        file: source file.
        digest: hashlib object that is updated with all raw bytes of the file by the end of the block.

    Raises:
        DataError: the file cannot be opened. Errors in the compressed bytes are raised while reading, as EOFError,
            OSError, zlib.error or zstandard.ZstdError.
    """
    try:
        raw = filesystem_open(file)
    except connection_errors(OSError) as error:
        raise DataError(f"{file.name}: cannot be opened ({told(error)})") from None
    with raw:
        source: Any = _Tapped(raw, digest)
        yield _unpack(file.packed, source)
        if digest is not None:
            while source.read(CHUNK):
                pass


def filesystem_open(file: SourceFile) -> Any:
    """The file's raw bytes, opened with fsspec."""
    return file.filesystem.open(file.path, "rb")


def hash_file(file: SourceFile, digest: Any) -> None:
    """Update a hashlib object with all raw bytes of the file."""
    with filesystem_open(file) as raw:
        while chunk := raw.read(CHUNK):
            digest.update(chunk)


def _expand(filesystem: Any, path: str) -> list[str]:
    if filesystem.isfile(path):
        return [path]
    if filesystem.isdir(path):
        return [p for p in filesystem.find(path) if _kind(p) is not None]
    return [p for p in filesystem.glob(path) if not filesystem.isdir(p)]


def _kind(path: str) -> tuple[str, str] | None:
    name = path.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    kind = next((ending for ending in KINDS if name.removesuffix(packed).endswith(ending)), None)
    if kind is None or (kind == ".parquet" and packed):
        return None
    return kind, packed


def _describe(filesystem: Any, path: str) -> SourceFile:
    local = filesystem.protocol in ("file", "local") or "file" in filesystem.protocol
    name = path if local else filesystem.unstrip_protocol(path)
    kind = _kind(path)
    if kind is None:
        raise DataError(
            f"{name}: unknown file ending; Photon reads {' '.join(KINDS)}, the first two also with "
            f"{' or '.join(PACKED)}"
        )
    if local:
        stat = Path(path).stat()
        fingerprint = (str(stat.st_size), str(stat.st_mtime_ns))
    else:
        info = filesystem.info(path)
        tag = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
        fingerprint = (str(info.get("size")), str(tag or info.get("created", "")))
    return SourceFile(name, kind[0], kind[1], fingerprint, filesystem, path)


class _Tapped(io.RawIOBase):
    """A raw stream that hashes what is read, if there is a digest. It gives remote files the io interface."""

    def __init__(self, raw: Any, digest: Any = None) -> None:
        self._raw = raw
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        if self._digest is not None:
            self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Zstandard(io.RawIOBase):
    """A zstd stream that raises an error if it is truncated; zstandard's reader does not."""

    def __init__(self, raw: Any) -> None:
        import zstandard

        self._raw = raw
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._raw.read(1 << 16)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed file ends in the middle")
                return 0
            self._frame = self._frame or self._new()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _unpack(packed: str, raw: Any) -> BinaryIO:
    if packed == ".gz":
        import gzip

        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if packed == ".zst":
        return io.BufferedReader(_Zstandard(raw), CHUNK)
    return io.BufferedReader(raw, CHUNK)
