"""Reads of S3 objects, each by the calling thread into the caller's memory.

s3fs passes every byte through the one event loop of its process. This is botocore's client beside it, made from
the same settings: endpoint, credentials and profiles, region, certificates and proxies. Requests are signed in
their headers, so that no address is a secret.
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

STEP = 1 << 20  # bytes a read of an answer
LOOK = 5.0  # s between two checks for answers that take too long
KEPT = 60.0  # s that a signature serves other ranges of the object; servers accept it for 15 minutes
OBJECTS = 1024  # whose signatures are kept
RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class S3Client:
    """Reads objects, for any number of threads, and also after a fork.

    Args:
        fs: s3fs filesystem with the settings.
        seconds: timeout of a request.
    """

    def __init__(self, fs: Any, seconds: float) -> None:
        self._fs, self._seconds = fs, seconds
        self._client: _Client | None = None

    def read(self, path: str) -> bytes:
        """A whole object."""
        client = self._of_process()
        with client.clock.limit(client.get(path), self._seconds) as answer:
            return bytes(answer.body.read())

    def read_into(self, path: str, views: Sequence[memoryview], start: int) -> int:
        """Fill one view after the other with the bytes from `start` on.

        Returns:
            Number of bytes; fewer than fit only where the object ends before.

        Raises:
            OSError: the error of s3fs for the server's answer.
            PhotonError: the server sends other bytes than requested.
        """
        expected = sum(map(len, views))
        if not expected:
            return 0
        client = self._of_process()
        try:
            response = client.get(path, f"bytes={start}-{start + expected - 1}")
        except OSError as error:
            if error_code(error) in ("InvalidRange", "416"):  # the object ends before
                return 0
            raise
        with client.clock.limit(response, self._seconds) as answer:
            length = _length(answer, path, start, expected)
            done = 0
            for view in views:
                at, end = 0, min(len(view), length - done)
                while at < end:
                    at += _some(answer.body, view[at : min(at + STEP, end)], length)
                done += end
        return done

    def _of_process(self) -> "_Client":
        """This process's client: a forked process must not use its parent's connections."""
        client = self._client
        if client is None or client.process != os.getpid():
            with _lock:
                client = self._client
                if client is None or client.process != os.getpid():
                    client = self._client = _Client(self._fs)
        return client


class _Answer(NamedTuple):
    body: Any  # botocore's StreamingBody
    range: str
    length: str


class _Client:
    """botocore's client of one process. Making and signing a request costs it more than the bytes do. So a signed
    request for an object is sent again for its other ranges: the signature does not cover the range."""

    def __init__(self, fs: Any) -> None:
        self.process, self.clock = os.getpid(), _Clock()
        self._client, self._arguments = _botocore_client(fs), fs.req_kw
        self._send = self._client._endpoint.http_session.send
        self._signed: dict[str, tuple[float, Any]] = {}
        self._requested = threading.local()
        self._client.meta.events.register("before-send.s3.GetObject", self._sending)

    def get(self, path: str, range: str = "") -> _Answer:
        """A range of an object, or all of it."""
        until, request = self._signed.get(path, (0.0, None))
        if range and time.monotonic() < until:
            answer = self._reuse(request, range)
            if answer is not None:
                return answer
        return self._sign(path, range)

    def _reuse(self, request: Any, range: str) -> _Answer | None:
        """Reuse a signed request. None if the server does not accept it; signing again raises a typed error."""
        from botocore.awsrequest import AWSPreparedRequest
        from botocore.exceptions import ClientError
        from botocore.response import StreamingBody

        headers = request.headers.copy()
        headers["Range"] = range
        answer = self._send(AWSPreparedRequest("GET", request.url, headers, None, True, request.context))
        status, headers = answer.status_code, answer.headers
        if status == 206:
            length = headers.get("Content-Length", "")
            return _Answer(StreamingBody(answer.raw, length or None), headers.get("Content-Range", ""), length)
        answer.raw.close()
        if status in BUSY:  # a busy server must not get a second request at once
            code = {"Code": HTTPStatus(status).phrase.replace(" ", "")}
            error = {"Error": code, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(error, "GetObject")
        return None

    def _sign(self, path: str, range: str) -> _Answer:
        """Sign and send a new request, and keep the signed one for the object's other ranges."""
        from botocore.exceptions import ClientError
        from s3fs.errors import translate_boto_error

        bucket, _, key = path.partition("/")
        self._requested.range, self._requested.request = range, None
        self._signed.pop(path, None)
        signed = time.monotonic()
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key, **self._arguments)
        except ClientError as error:
            raise translate_boto_error(error) from error
        if range:
            if len(self._signed) >= OBJECTS:
                self._signed.clear()
            self._signed[path] = signed + KEPT, self._requested.request
        length = answer["ResponseMetadata"]["HTTPHeaders"].get("content-length", "")
        return _Answer(answer["Body"], answer.get("ContentRange", ""), length)

    def _sending(self, request: Any, **_: Any) -> None:
        """Called by botocore with each signed request before it is sent."""
        if self._requested.range:
            request.headers["Range"] = self._requested.range
            self._requested.request = request


class _Clock:
    """The time limit of a whole answer: it also ends one whose bytes trickle in without a read timeout."""

    def __init__(self) -> None:
        self._answers: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._watching = False

    @contextmanager
    def limit(self, answer: _Answer, seconds: float) -> Iterator[_Answer]:
        """Cut the answer's connection after `seconds`, so that a waiting reader meets its end.

        The connection is kept if the answer is read completely, else closed.
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
                    with suppress(Exception):  # the answer has ended by itself
                        raw.connection.sock.shutdown(socket.SHUT_RDWR)


def _botocore_client(fs: Any) -> Any:
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


def _length(answer: _Answer, path: str, start: int, requested: int) -> int:
    """Bytes of the body: the requested range, or the part of it that exists."""
    match = RANGE.fullmatch(answer.range)
    if match is None:  # the whole object instead of the range
        first, length = 0, int(answer.length or requested + 1)
    else:
        first, length = int(match[1]), int(match[2]) + 1 - int(match[1])
    if first != start or not 0 < length <= requested:
        raise PhotonError(
            f"read s3://{path}: bytes {start} to {start + requested - 1} were requested, and the server sends "
            f"{answer.range[:80] or 'the whole object'}; a store needs a server that supports range requests"
        )
    return length


def _some(body: Any, view: memoryview, length: int) -> int:
    """Number of the body's bytes that were read into the view."""
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
