"""The bytes of objects on S3, fetched by the thread that wants them into memory that it brings.

s3fs passes every byte through the one event loop of its process. This is botocore's own client beside it, made of
the same settings: endpoint, credentials and profiles, region, certificates and proxies are found as there, and
requests are signed in their headers, so that no address is a secret.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, NamedTuple

from photon_core.errors import PhotonError
from photon_core.store.retry import BUSY
from schemas.server_errors import error_code

STEP = 1 << 20  # bytes between two looks at what has come
LOOK = 5.0  # s between two looks for answers that take too long
KEPT = 60.0  # s that a signature serves other ranges of the object; servers take it for 15 minutes
OBJECTS = 1024  # whose signatures are kept
RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class S3Client:
    """Reads objects; for any number of threads, and again after a fork.

    Args:
        fs: the s3fs filesystem whose settings are taken.
        seconds: for one request.
    """

    def __init__(self, fs: Any, seconds: float) -> None:
        self._fs, self._seconds = fs, seconds
        self._made: _Made | None = None

    def read(self, path: str) -> bytes:
        """A whole object."""
        made = self._mine()
        with made.clock.limit(made.get(path), self._seconds) as answer:
            return bytes(answer.body.read())

    def read_into(self, path: str, views: Sequence[memoryview], start: int) -> int:
        """Bytes from `start` on, into one view after the other; how many: fewer only where the object ends before.

        Raises:
            OSError: as s3fs raises for the server's answer.
            PhotonError: the server sends other bytes than those that were asked for.
        """
        wanted = sum(map(len, views))
        if not wanted:
            return 0
        made = self._mine()
        try:
            found = made.get(path, f"bytes={start}-{start + wanted - 1}")
        except OSError as error:
            if error_code(error) in ("InvalidRange", "416"):  # the object ends before
                return 0
            raise
        with made.clock.limit(found, self._seconds) as answer:
            length = _length(answer, path, start, wanted)
            done = 0
            for view in views:
                at, end = 0, min(len(view), length - done)
                while at < end:
                    at += _some(answer.body, view[at : min(at + STEP, end)], length)
                done += end
        return done

    def _mine(self) -> "_Made":
        """This process's: connections of the process that it was forked from are not its own."""
        made = self._made
        if made is None or made.process != os.getpid():
            with _lock:
                made = self._made
                if made is None or made.process != os.getpid():
                    made = self._made = _Made(self._fs)
        return made


class _Answer(NamedTuple):
    body: Any  # botocore's StreamingBody
    range: str
    length: str


class _Made:
    """botocore's client of one process. Making and signing a request costs it more than the bytes do: what is
    signed for an object is sent again for its other ranges, which are no part of what is signed."""

    def __init__(self, fs: Any) -> None:
        self.process, self.clock = os.getpid(), _Clock()
        self._client, self._arguments = _make(fs), fs.req_kw
        self._send = self._client._endpoint.http_session.send
        self._signed: dict[str, tuple[float, Any]] = {}
        self._asked = threading.local()
        self._client.meta.events.register("before-send.s3.GetObject", self._sending)

    def get(self, path: str, range: str = "") -> _Answer:
        """A range of an object, or all of it."""
        until, request = self._signed.get(path, (0.0, None))
        if range and time.monotonic() < until:
            answer = self._again(request, range)
            if answer is not None:
                return answer
        return self._anew(path, range)

    def _again(self, request: Any, range: str) -> _Answer | None:
        """None for an answer that is none of what is asked for: asked anew, the error gets its name."""
        from botocore.awsrequest import AWSPreparedRequest
        from botocore.exceptions import ClientError
        from botocore.response import StreamingBody

        headers = request.headers.copy()
        headers["Range"] = range
        answer = self._send(AWSPreparedRequest("GET", request.url, headers, None, True, request.context))
        status, found = answer.status_code, answer.headers
        if status == 206:
            length = found.get("Content-Length", "")
            return _Answer(StreamingBody(answer.raw, length or None), found.get("Content-Range", ""), length)
        answer.raw.close()
        if status in BUSY:  # not to be asked again at once
            code = {"Code": HTTPStatus(status).phrase.replace(" ", "")}
            error = {"Error": code, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(error, "GetObject")
        return None

    def _anew(self, path: str, range: str) -> _Answer:
        from botocore.exceptions import ClientError
        from s3fs.errors import translate_boto_error

        bucket, _, key = path.partition("/")
        self._asked.range, self._asked.request = range, None
        self._signed.pop(path, None)
        signed = time.monotonic()
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key, **self._arguments)
        except ClientError as error:
            raise translate_boto_error(error) from error
        if range:
            if len(self._signed) >= OBJECTS:
                self._signed.clear()
            self._signed[path] = signed + KEPT, self._asked.request
        length = answer["ResponseMetadata"]["HTTPHeaders"].get("content-length", "")
        return _Answer(answer["Body"], answer.get("ContentRange", ""), length)

    def _sending(self, request: Any, **_: Any) -> None:
        """Called by botocore with a request that is signed."""
        if self._asked.range:
            request.headers["Range"] = self._asked.range
            self._asked.request = request


class _Clock:
    """Ends answers that come too slowly, however often a byte of them arrives."""

    def __init__(self) -> None:
        self._answers: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._watching = False

    @contextmanager
    def limit(self, answer: _Answer, seconds: float) -> Iterator[_Answer]:
        """Whoever waits for more of an answer after so many seconds meets its end.

        Its connection is kept if all of it is read, else closed.
        """
        with answer.body as raw:
            with self._lock:
                self._answers[id(raw)] = time.monotonic() + seconds, raw
                if not self._watching:
                    self._watching = True
                    threading.Thread(target=self._watch, name="s3-clock", daemon=True).start()
            try:
                yield answer
            finally:
                with self._lock:
                    del self._answers[id(raw)]

    def _watch(self) -> None:
        idle = False
        while True:
            time.sleep(LOOK)
            with self._lock:
                if not self._answers and idle:
                    self._watching = False
                    return
                idle = not self._answers
                late = [raw for end, raw in self._answers.values() if end < time.monotonic()]
                for raw in late:
                    with suppress(Exception):  # it has ended by itself
                        raw.connection.sock.shutdown(socket.SHUT_RDWR)


def _make(fs: Any) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    given = {
        **{"aws_access_key_id": fs.key, "aws_secret_access_key": fs.secret, "aws_session_token": fs.token},
        **{"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl},
        **fs.client_kwargs,
    }
    config = dict(fs.config_kwargs)
    if fs.anon:
        config["signature_version"] = UNSIGNED
        given = {name: value for name, value in given.items() if not name.startswith("aws_")}
    given = {name: value for name, value in given.items() if value is not None}
    return Session(**fs.kwargs).create_client("s3", config=Config(**config), **given)


def _length(answer: _Answer, path: str, start: int, wanted: int) -> int:
    """Bytes of the body, which is the range that was asked for, or what there is of it."""
    found = RANGE.fullmatch(answer.range)
    if found is None:  # the whole object, though a range was asked for
        first, length = 0, int(answer.length or wanted + 1)
    else:
        first, length = int(found[1]), int(found[2]) + 1 - int(found[1])
    if first != start or not 0 < length <= wanted:
        raise PhotonError(
            f"read s3://{path}: the server was asked for bytes {start} to {start + wanted - 1} and sends "
            f"{answer.range[:80] or 'the whole object'}; a store needs a server that knows ranges"
        )
    return length


def _some(body: Any, view: memoryview, length: int) -> int:
    """Bytes of the body that came into the view."""
    from botocore.exceptions import IncompleteReadError

    count = int(body.readinto(view))
    if not count:
        raise IncompleteReadError(actual_bytes=0, expected_bytes=length)
    return count


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


_lock = threading.Lock()
os.register_at_fork(after_in_child=_renew_lock)  # another thread may have held it
