"""Objects read in ranges and written in parts, so that a broken connection costs one part and not the file.

A failed part is sent again. The object appears, whole, with the last call. Parts of uploads that were never
completed are invisible (a bucket's lifecycle rule removes them, docs/store.md).
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from photon_core.errors import PhotonError, StoreConflict
from photon_core.store.interface import Writer
from schemas.server_errors import error_code

PART = 16 << 20  # bytes; S3 takes 10,000 parts of an object, so 156 GiB
BLOCK = 8 << 20  # bytes of one ranged read
ReadInto = Callable[[Sequence[memoryview], int], int]


class Call(Protocol):
    """Calls a method of S3's API for one object, with retries for `retry_seconds`, or the store's."""

    def __call__(self, method: str, retry_seconds: float | None = None, **arguments: Any) -> Any: ...


class ObjectWriter(Writer):
    """An object that is written in parts; it appears, whole, on `close`.

    Args:
        call: S3's API for this object.
        size: function that returns the bytes of the existing object of that name; None if there is none.
        only_new: flag: the server must not replace an object (If-None-Match).
    """

    def __init__(self, call: Call, size: Callable[[], int | None], only_new: bool) -> None:
        self._call, self._size = call, size
        self._condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_new else {}
        self._buffer = bytearray()
        self._sent = 0
        self._upload = ""
        self._tags: list[str] = []
        self._open = True

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._buffer += data
        while len(self._buffer) > PART:
            self._send(PART)
        return len(data)

    def close(self) -> None:
        """Make the object appear.

        Raises:
            StoreConflict: another object has its name.
        """
        if not self._open:
            return
        try:
            if self._upload:
                self._send(len(self._buffer))
                parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(self._tags, 1)]
                upload = {"UploadId": self._upload, "MultipartUpload": {"Parts": parts}}
                self._finish("complete_multipart_upload", self._sent, **upload)
            else:
                self._finish("put_object", len(self._buffer), Body=bytes(self._buffer))
        except BaseException:
            self.discard()
            raise
        self._open = False
        self._buffer = bytearray()

    def discard(self) -> None:
        """Drop what was written. After `close` this does nothing."""
        if not self._open:
            return
        self._open = False
        self._buffer = bytearray()
        if self._upload:
            with suppress(OSError, PhotonError):  # an unreachable server keeps the invisible parts
                self._call("abort_multipart_upload", retry_seconds=0, UploadId=self._upload)

    def _send(self, count: int) -> None:
        if not self._upload:
            self._upload = self._call("create_multipart_upload")["UploadId"]
        with memoryview(self._buffer) as view:
            body = bytes(view[:count])
        answer = self._call("upload_part", UploadId=self._upload, PartNumber=len(self._tags) + 1, Body=body)
        self._tags.append(answer["ETag"])
        self._sent += count
        del self._buffer[:count]

    def _finish(self, method: str, size: int, **arguments: Any) -> None:
        try:
            self._call(method, **arguments, **self._condition)
        except OSError as error:
            code = error_code(error)
            if code not in ("NoSuchUpload", "PreconditionFailed", "412"):
                raise
            # perhaps an earlier try succeeded and its answer was lost
            if self._size() != size:
                raise StoreConflict("the name was taken by another writer") from None


class ObjectReader(io.RawIOBase):
    """An object read sequentially, in ranges that are requested again when they fail.

    Args:
        read_into: function that fills views with the bytes from a position on, and returns their number: fewer
            than fit where the object ends before.
    """

    def __init__(self, read_into: ReadInto) -> None:
        self._read_into = read_into
        self._at = 0
        self._start = 0  # of the current block
        self._memory = self._block = memoryview(b"")
        self._ended = False  # the current block is the last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is unknown until it is read")
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        here = self._at - self._start
        if not 0 <= here < len(self._block):
            if here >= len(self._block) and self._ended:
                return 0
            self._memory = self._memory or memoryview(bytearray(BLOCK))
            count = self._read_into([self._memory], self._at)
            self._start, self._block, self._ended = self._at, self._memory[:count], count < len(self._memory)
            here = 0
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._block) - here)
        view[:count] = self._block[here : here + count]
        self._at += count
        return count


class ObjectRanges:
    """An object's ranges, each a separate request, so that several connections can fetch it.

    Args:
        read_into: function that fills views, as for ObjectReader.
    """

    def __init__(self, read_into: ReadInto) -> None:
        self.read_into = read_into

    def close(self) -> None:
        pass
