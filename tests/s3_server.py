"""An S3 server on loopback (moto's, over real HTTP), and a proxy before it that breaks connections on demand."""

import contextlib
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

SILENCE = 30.0  # s; longest time of a connection of the proxy without a byte
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
BUSY_BODY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: str
    length: int


Fault = (
    str | tuple[str, int] | None
)  # "503", "answer", "reset", ("cut", bytes of the body), ("cut answer", bytes of it)


class FaultProxy:
    """Passes connections on, one request each, and breaks those that `fault` says.

    Attributes:
        requests: what was asked, in order.
        broken: those that were broken.
        fault: Request -> what happens to it instead of being passed on; None for nothing.
        answer: what the fault "answer" says.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self.requests: list[Request] = []
        self.broken: list[Request] = []
        self.answer = b""
        self.fault: Callable[[Request], Fault] = lambda _: None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def away_for(self, seconds: float, *faults: Fault) -> None:
        """From the next request on, break everything for `seconds`, with these faults in turn."""
        end: list[float] = []
        turns = faults or ("503", "reset")

        def fault(_: Request) -> Fault:
            end.append(end[0] if end else time.monotonic() + seconds)
            return turns[len(end) % len(turns)] if time.monotonic() < end[0] else None

        self.fault = fault

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(SILENCE)
        with client, contextlib.suppress(OSError, ValueError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            request = _parse(head.decode("latin-1"))
            self.requests.append(request)
            fault = self.fault(request)
            if fault is not None:
                self.broken.append(request)
            if fault == "reset":
                _reset(client)
                return
            if fault in ("503", "answer"):
                if b"100-continue" in head.lower():
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                while len(body) < request.length and (data := client.recv(65536)):
                    body += data
                client.sendall(self.answer if fault == "answer" else BUSY % (len(BUSY_BODY), BUSY_BODY))
                return
            cut, limit = fault if isinstance(fault, tuple) else ("", 0)
            with socket.create_connection(self._upstream, timeout=SILENCE) as server:
                server.sendall(head + b"\r\n\r\n" + body)
                back = threading.Thread(
                    target=_pump, args=(server, client, limit if cut == "cut answer" else None), daemon=True
                )
                back.start()
                _pump(client, server, limit - len(body) if cut == "cut" else None, request.length - len(body))
                back.join(SILENCE)


def _parse(head: str) -> Request:
    line, _, headers = head.partition("\r\n")
    method, target, _ = line.split(" ")
    path, _, query = target.partition("?")
    length = next(
        (int(h.split(":")[1]) for h in headers.split("\r\n") if h.lower().startswith("content-length:")), 0
    )
    return Request(method, path, query, headers, length)


def _pump(source: socket.socket, sink: socket.socket, cut: int | None, length: int | None = None) -> None:
    """Pass bytes on until the end, or `length` of them; after `cut` bytes reset both ends."""
    passed = 0
    with contextlib.suppress(OSError):
        while length is None or passed < length:
            if cut is not None and passed >= cut:
                _reset(source)
                _reset(sink)
                return
            if not (data := source.recv(65536)):
                break
            sink.sendall(data)
            passed += len(data)
        if length is None:
            sink.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads from it
    connection.close()


def serve(strip: bool) -> Iterator[str]:
    """moto's S3; with `strip`, one that ignores If-None-Match."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if strip:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAPHOTONTESTKEY000", "AWS_SECRET_ACCESS_KEY": "photon/test/secret+access+key"}


def hostile(key: str, secret: str) -> bytes:
    """An answer that repeats them wherever a server may write; for the fault "answer"."""
    body = f"<Error><Code>{key}</Code><Message>{secret} of {key}</Message><Resource>{secret}</Resource></Error>"
    head = f"HTTP/1.1 400 {key}\r\nContent-Type: application/xml\r\nx-amz-request-id: {key}\r\nConnection: close"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    """The server's, in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with credentials():
        yield from serve(strip=False)


@pytest.fixture
def s3_proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """A fresh bucket's name."""
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir(bucket)
    return bucket
