"""Bytes from S3 by the thread that wants them: right ones, in bounded time, with nothing secret in an address."""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import PhotonError, StoreRefused, StoreUnavailable
from photon_core.store import s3
from photon_core.store.remote import RemoteFiles
from photon_core.store.store import Store
from tests.s3_server import BUSY, SECRETS, FaultProxy, Request

pytestmark = pytest.mark.usefixtures("s3_endpoint")
DATA = bytes(range(256)) * 40_000


@pytest.fixture
def store(s3_proxy: FaultProxy, s3_bucket: str) -> Store:
    store = Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_proxy.url, retry_seconds=10.0)
    store.create("run/shard", DATA)
    s3_proxy.requests.clear()
    return store


def header(request: Request, name: str) -> str:
    return next(
        (h.split(":", 1)[1].strip() for h in request.headers.split("\r\n") if h.lower().startswith(name)), ""
    )


def ranged(start: int, end: int, store: Store, path: str = "run/shard") -> bytes:
    data = bytearray(end - start)
    count = store.open_ranges(path).read_into([memoryview(data)], start)
    return bytes(data[:count])


def test_one_request_fills_several_views(store: Store, s3_proxy: FaultProxy) -> None:
    ranges, memory = store.open_ranges("run/shard"), bytearray(3_000_000)
    views = [memoryview(memory)[a:b] for a, b in ((0, 7), (10, 10), (100, 2_500_000), (2_600_000, 3_000_000))]
    size = sum(map(len, views))
    assert ranges.read_into(views, 5) == size
    assert b"".join(views) == DATA[5 : 5 + size]
    assert memory[7:100] == bytes(93)  # nothing beside them
    assert len(s3_proxy.requests) == 1
    assert ranges.read_into(views, len(DATA) - 50) == 50  # the object ends before
    assert b"".join(views)[:50] == DATA[-50:]
    assert ranges.read_into(views, len(DATA)) == 0
    assert ranges.read_into([], 0) == 0


def test_a_signature_serves_an_objects_ranges_for_a_while(
    store: Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (0, 1000, 5_000_000):
        assert ranged(start, start + 100, store) == DATA[start : start + 100]
    first, second, third = s3_proxy.requests
    assert header(first, "authorization") and "range" not in header(first, "authorization").lower()
    assert header(first, "authorization") == header(second, "authorization") == header(third, "authorization")
    assert [header(r, "range:") for r in s3_proxy.requests] == [
        *("bytes=0-99", "bytes=1000-1099", "bytes=5000000-5000099")
    ]
    monkeypatch.setattr(s3, "KEPT", -1.0)
    store.create("run/other", b"other")
    s3_proxy.requests.clear()
    for _ in range(2):
        assert ranged(0, 5, store, "run/other") == b"other"
        time.sleep(1.1)  # signatures contain the second
    first, second = s3_proxy.requests
    assert header(first, "x-amz-date") != header(second, "x-amz-date")


def test_what_is_signed_is_what_botocore_verifies(store: Store, s3_proxy: FaultProxy) -> None:
    """The signature of another range than the first, recomputed from what went over the wire."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    ranged(0, 10, store)
    ranged(10, 20, store)
    request = s3_proxy.requests[1]
    said = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=(\S+)",
        header(request, "authorization"),
    )
    assert said
    auth = S3SigV4Auth(Credentials(*SECRETS.values()), "s3", "us-east-1")
    again = AWSRequest("GET", s3_proxy.url + request.path)
    again.context["timestamp"] = header(request, "x-amz-date")
    for name in said[2].split(";"):
        if name != "host":
            again.headers[name] = header(request, name + ":")
    text = auth.string_to_sign(again, auth.canonical_request(again))
    assert auth.signature(text, again) == said[3]


@pytest.mark.parametrize("code, status", [("ExpiredToken", "400 Bad Request"), ("AccessDenied", "403 Forbidden")])
def test_a_signature_that_is_refused_is_made_anew(
    store: Store, s3_proxy: FaultProxy, code: str, status: str
) -> None:
    ranged(0, 10, store)
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    s3_proxy.answer = BUSY.replace(b"503 Service Unavailable", status.encode()) % (len(body), body)
    s3_proxy.fault = lambda _: "answer" if not s3_proxy.broken else None
    assert ranged(10, 20, store) == DATA[10:20]
    assert len(s3_proxy.requests) == 3


def test_a_refusal_is_told_without_a_secret(
    store: Store, s3_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    ranged(0, 10, store)
    signature = header(s3_proxy.requests[0], "authorization").rpartition("Signature=")[2]
    key = os.environ["AWS_ACCESS_KEY_ID"]
    body = f"<Error><Code>AccessDenied</Code><Message>{key} may not</Message></Error>".encode()
    s3_proxy.answer = BUSY.replace(b"503 Service Unavailable", b"403 Forbidden") % (len(body), body)
    s3_proxy.fault = lambda _: "answer"
    with caplog.at_level(logging.INFO), pytest.raises(StoreRefused, match="AccessDenied, HTTP 403") as caught:
        ranged(10, 20, store)
    assert caught.value.__suppress_context__
    assert not [
        s for s in (key, signature, SECRETS["AWS_SECRET_ACCESS_KEY"]) if s in str(caught.value) + caplog.text
    ]
    queries = [r.query for r in s3_proxy.requests if r.query]  # whether it is listed, and no signature
    assert all(query.startswith("list-type=2&prefix=") for query in queries), queries
    assert not [s for s in (key, signature) if s in "".join(queries)]
    assert len(s3_proxy.requests) - len(queries) == 3


def test_a_missing_object_is_named_also_when_it_was_there(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        ranged(0, 10, store, "run/none")
    ranged(0, 10, store)
    store.discard("run/shard")
    with pytest.raises(FileNotFoundError):
        ranged(0, 10, store)


@pytest.mark.parametrize("fault", ["503", "reset", ("cut answer", 0), ("cut answer", 700_000)])
def test_what_breaks_is_asked_for_again(store: Store, s3_proxy: FaultProxy, fault: Any) -> None:
    ranged(0, 10, store)
    s3_proxy.fault = lambda _: fault if len(s3_proxy.broken) < 3 else None
    assert ranged(0, len(DATA), store) == DATA
    assert len(s3_proxy.broken) == 3
    assert len(s3_proxy.requests) == 5  # a busy server is not asked twice in a try


@pytest.mark.parametrize("said", [b"bytes 0-9/20", b"bytes 10-30/40", b"bytes */40", b""])
def test_other_bytes_than_those_asked_for_are_not_taken(store: Store, s3_proxy: FaultProxy, said: bytes) -> None:
    ranged(0, 10, store)
    head = b"Content-Range: " + said + b"\r\n" if said else b""
    s3_proxy.answer = b"HTTP/1.1 206 Partial Content\r\n" + head + b"Content-Length: 10\r\n\r\n0123456789"
    s3_proxy.fault = lambda _: "answer"
    with pytest.raises(PhotonError, match=r"bytes 10 to 19 were requested, .* sends .*supports range requests"):
        ranged(10, 20, store)


def test_a_server_that_sends_the_whole_object_instead_is_refused(store: Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\nConnection: close\r\n\r\n" + b"x" * 40
    s3_proxy.fault = lambda _: "answer"
    with pytest.raises(PhotonError, match="sends the whole object"):
        ranged(10, 20, store)
    assert ranged(0, 50, store) == b"x" * 40  # the requested range


def test_the_settings_are_the_filesystems(s3_proxy: FaultProxy, store: Store) -> None:
    given = Store(
        store.url, endpoint_url=s3_proxy.url, requester_pays=True, key="AKIAGIVEN00000000000", secret="x"
    )
    assert ranged(0, 10, given) == DATA[:10]
    assert "AKIAGIVEN00000000000" in header(s3_proxy.requests[-1], "authorization")
    assert header(s3_proxy.requests[-1], "x-amz-request-payer") == "requester"
    with pytest.raises(StoreRefused):  # the bucket is not open to all
        ranged(0, 10, Store(store.url, endpoint_url=s3_proxy.url, anon=True))
    assert not header(s3_proxy.requests[-1], "authorization")


def test_a_profile_is_used(
    s3_proxy: FaultProxy, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        "[site]\naws_access_key_id = AKIAOFTHEPROFILE0000\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in SECRETS:
        monkeypatch.delenv(name)
    other = Store(store.url, endpoint_url=s3_proxy.url, profile="site")
    assert ranged(0, 10, other) == DATA[:10]
    assert "AKIAOFTHEPROFILE0000" in header(s3_proxy.requests[-1], "authorization")
    with pytest.raises(StoreRefused, match="ProfileNotFound"):
        ranged(0, 10, Store(store.url, endpoint_url=s3_proxy.url, profile="none"))


def test_a_child_has_connections_of_its_own(store: Store) -> None:
    ranges, data = store.open_ranges("run/shard"), bytearray(1000)
    ranges.read_into([memoryview(data)], 0)
    ours, theirs = socket.socketpair()
    with s3._lock:  # as another thread might at that moment
        child = os.fork()
    if not child:
        found = bytearray(1000)
        ranges.read_into([memoryview(found)], 2000)
        theirs.sendall(found)
        os._exit(0)
    ours.settimeout(30)
    assert ours.recv(1000, socket.MSG_WAITALL) == DATA[2000:3000]
    os.waitpid(child, 0)
    assert ranged(3000, 4000, store) == DATA[3000:4000]


class Server:
    """One object over HTTP, as `send(handler, start, end)` sends its ranges; counts connections."""

    def __init__(self, send: Callable[[BaseHTTPRequestHandler, int, int], None]) -> None:
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(handler) -> None:
                self.connections += 1
                super().setup()

            def do_GET(handler) -> None:
                start, end = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
                handler.send_response(206)
                handler.send_header("Content-Length", str(end + 1 - start))
                handler.send_header("Content-Range", f"bytes {start}-{end}/{len(DATA)}")
                handler.end_headers()
                send(handler, start, end + 1)

            def log_message(handler, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(send: Callable[[BaseHTTPRequestHandler, int, int], None]) -> Server:
        servers.append(Server(send))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_threads_share_connections_that_are_kept(serve: Callable[..., Server]) -> None:
    server = serve(lambda handler, start, end: handler.wfile.write(DATA[start:end]))
    store = Store("s3://bucket/prefix", endpoint_url=server.url)
    pairs = [(n * 9973, n * 9973 + 50_000) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: ranged(pair[0], pair[1], store), pairs))
    assert found == [DATA[start:end] for start, end in pairs]
    assert server.connections <= 8


def test_an_answer_that_trickles_ends(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler, start: int, end: int) -> None:
        try:
            for n in range(start, end):
                handler.wfile.write(DATA[n : n + 1])
                time.sleep(0.05)
        except OSError:
            gone.set()

    monkeypatch.setattr(s3, "LOOK", 0.1)
    files = RemoteFiles("s3://bucket/prefix", retry_seconds=0.5, endpoint_url=serve(trickle).url)
    assert files._s3 is not None
    files._s3._seconds = 0.3
    with pytest.raises(StoreUnavailable, match=r"read s3://bucket/prefix/shard: .* tries"):
        files.open_ranges("shard").read_into([memoryview(bytearray(10_000))], 0)
    assert gone.wait(30)  # its connection is closed
