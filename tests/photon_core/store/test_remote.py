"""A store on S3 while the server is busy, away, or cut off: repeated, bounded, named, never half-visible."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import CorruptFile, PhotonError, StoreConflict, StoreRefused, StoreUnavailable
from photon_core.run.run import Run
from photon_core.store import objects
from photon_core.store.store import Store
from schemas.manifests import FileEntry
from tests.s3_server import BUSY, SECRETS, FaultProxy, Request

MIB = 1 << 20


@pytest.fixture
def store(s3_proxy: FaultProxy, s3_bucket: str) -> Store:
    return Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_proxy.url, retry_seconds=20.0)


@pytest.fixture
def hasty(s3_proxy: FaultProxy, s3_bucket: str) -> Store:
    """The same place with a short timeout."""
    return Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_proxy.url, retry_seconds=0.3)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PART", 5 * MIB)  # S3's least
    monkeypatch.setattr(objects, "BLOCK", MIB)


def content(size: int) -> bytes:
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(size // 32 + 1))[:size]


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def uploads(store: Store) -> list[str]:
    import boto3

    client = boto3.client("s3", endpoint_url=store._options["endpoint_url"])
    return [u["Key"] for u in client.list_multipart_uploads(Bucket=store.url.split("/")[2]).get("Uploads", [])]


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_every_call_outlives_a_server_that_is_away(
    store: Store, s3_proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    data = content(1000)
    (tmp_path / "shard").write_bytes(data)
    calls: list[Callable[[], Any]] = [
        lambda: store.create("run/run.json", b"born"),
        lambda: store.put(tmp_path / "shard", "run/model/shard"),
        lambda: store.read("run/model/shard"),
        lambda: store.read_range("run/model/shard", 10, 20),
        lambda: store.size("run/model/shard"),
        lambda: store.exists("run/model/shard"),
        lambda: store.ls("run"),
        lambda: store.check(entry("model/shard", data), "run"),
        lambda: store.fetch(entry("model/shard", data), "run", tmp_path / "cache").read_bytes(),
    ]
    answers = []
    for call in calls:
        s3_proxy.away_for(0.3, fault)
        answers.append(call())
        assert s3_proxy.broken
        s3_proxy.broken.clear()
    assert answers == [None, None, data, data[10:20], 1000, True, ["model", "run.json"], None, data]


def test_a_commit_whose_answer_is_lost_is_still_one_commit(store: Store, s3_proxy: FaultProxy) -> None:
    store.create("other.json", b"the server is probed")

    def fault(request: Request) -> Any:
        lost = request.method == "PUT" and not s3_proxy.broken
        return ("cut answer", 0) if lost else None

    s3_proxy.fault = fault
    store.create("run/round.json", b"mine")
    assert len(s3_proxy.broken) == 1
    assert store.read("run/round.json") == b"mine"
    with pytest.raises(StoreConflict):
        store.create("run/round.json", b"yours")


def test_an_endless_outage_is_named_and_bounded(hasty: Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.away_for(60)
    for call in (lambda: hasty.create("run/round.json", b"x"), lambda: hasty.read("x"), lambda: hasty.ls("run")):
        with pytest.raises(StoreUnavailable, match=r"s3://bucket-\S+/prefix/\S+: .* tries .*run again"):
            call()
    s3_proxy.fault = lambda _: None
    assert hasty.ls("run") == []


def test_each_retry_is_one_request(hasty: Store, s3_proxy: FaultProxy) -> None:
    """s3fs and botocore do not retry, too: their retries have no time limit."""
    s3_proxy.away_for(60, "503")
    with pytest.raises(StoreUnavailable) as refused:
        hasty.ls("run")
    assert f" {len(s3_proxy.broken)} tries" in str(refused.value)


@pytest.mark.usefixtures("small_parts")
def test_large_files_travel_in_parts_and_ranges(store: Store, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    data = content(12 * MIB + 7)
    (tmp_path / "shard").write_bytes(data)
    store.put(tmp_path / "shard", "run/put")
    with store.open_write("run/written") as file:
        for start in range(0, len(data), 3 * MIB):
            file.write(memoryview(data)[start : start + 3 * MIB])
    parts = [r for r in s3_proxy.requests if "partNumber" in r.query]
    assert len(parts) == 6
    assert max(r.length for r in s3_proxy.requests) < 6 * MIB
    s3_proxy.requests.clear()
    for name in ("put", "written"):
        local = store.fetch(entry(name, data), "run", tmp_path / name)
        assert local.read_bytes() == data
    ranges = [r for r in s3_proxy.requests if "range: bytes=" in r.headers.lower()]
    assert len(ranges) == 2 * 13
    with store.open_read("run/put") as file:
        file.seek(12 * MIB)
        assert file.read() == data[12 * MIB :]
        file.seek(5)
        assert file.read(3) == data[5:8]
    with pytest.raises(StoreConflict):  # what is there is not sent again
        store.put(tmp_path / "shard", "run/put")


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_is_cut_goes_on_with_the_part(store: Store, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    data = content(11 * MIB)
    (tmp_path / "shard").write_bytes(data)
    seen: set[str] = set()

    def fault(request: Request) -> Any:
        """Every part once cut in the middle; the answer to the last call once lost."""
        if "uploadId" not in request.query or request.query in seen:
            return None
        seen.add(request.query)
        return ("cut", 2 * MIB) if request.method == "PUT" else ("cut answer", 0)

    s3_proxy.fault = fault
    store.put(tmp_path / "shard", "run/shard")
    assert len(s3_proxy.broken) == 4
    store.check(entry("shard", data), "run")
    assert uploads(store) == []


@pytest.mark.parametrize("size", [MIB, 11 * MIB])
@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_stays_cut_leaves_nothing_to_see(
    hasty: Store, s3_proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    (tmp_path / "shard").write_bytes(content(size))

    def fault(request: Request) -> Any:
        big = request.method == "PUT" and ("partNumber=2" in request.query or size == MIB)
        return ("cut", size // 4) if big else None

    s3_proxy.fault = fault
    with pytest.raises(StoreUnavailable, match="run/shard"):
        hasty.put(tmp_path / "shard", "run/shard")
    assert not hasty.exists("run/shard")
    assert hasty.ls("run") == []
    assert uploads(hasty) == []
    s3_proxy.fault = lambda _: None
    hasty.put(tmp_path / "shard", "run/shard")
    assert hasty.size("run/shard") == size


@pytest.mark.usefixtures("small_parts")
def test_a_download_that_is_cut_goes_on(store: Store, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    data = content(3 * MIB)
    store.create("run/shard", data)
    seen: set[str] = set()

    def fault(request: Request) -> Any:
        first = request.method == "GET" and request.headers not in seen and len(s3_proxy.broken) < 3
        return ("cut answer", 200_000) if first else None

    s3_proxy.fault = fault
    assert store.fetch(entry("shard", data), "run", tmp_path).read_bytes() == data
    assert len(s3_proxy.broken) == 3


def test_an_aggregation_outlives_a_server_that_is_away(
    store: Store, s3_proxy: FaultProxy, tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    import numpy as np

    from photon_core.aggregation.aggregate import aggregate
    from photon_core.run.run import model_sha256
    from schemas.sections.server import Server

    theta = {"w": np.linspace(-1, 1, 50_000, dtype=np.float32)}
    sites = {name: ({"w": theta["w"] + np.float32(i)}, 10) for i, name in enumerate("ab")}
    here = aggregate(*_of(make_run(Store(str(tmp_path)), theta, sites)), Server())
    run, updates = make_run(store, theta, sites)
    s3_proxy.away_for(2.0)
    there = aggregate(run, 1, updates, Server())
    assert s3_proxy.broken
    assert model_sha256(there.model) == model_sha256(here.model)


def _of(made: tuple[Run, Any]) -> tuple[Run, int, Any]:
    return made[0], 1, made[1]


def test_a_missing_bucket_and_missing_credentials_are_named(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(b"x")
    store = Store("s3://no-such-bucket-here/prefix", endpoint_url=s3_endpoint)
    for call in (lambda: store.create("a/b", b""), lambda: store.put(tmp_path / "shard", "a/c")):
        with pytest.raises(PhotonError, match="no bucket 'no-such-bucket-here'"):
            call()
    assert store.ls("a") == []
    for name in SECRETS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = Store("s3://bucket/prefix", endpoint_url=s3_endpoint, client_kwargs={"region_name": "eu-west-1"})
    with pytest.raises(StoreRefused, match="no credentials"):
        store.ls("a")


def test_what_is_refused_is_told_at_once_and_without_the_key(store: Store, s3_proxy: FaultProxy) -> None:
    key = os.environ["AWS_ACCESS_KEY_ID"]
    body = f"<Error><Code>InvalidAccessKeyId</Code><Message>No {key}</Message></Error>".encode()

    refusal = BUSY.replace(b"503 Service Unavailable", b"403 Forbidden")
    s3_proxy.answer = refusal % (len(body), body)
    s3_proxy.fault = lambda _: "answer"
    calls = (lambda: store.read("x"), lambda: store.create("a/b", b""), lambda: store.ls("a"))
    for call in calls:
        with pytest.raises(StoreRefused, match="InvalidAccessKeyId, HTTP 403") as caught:
            call()
        assert key not in str(caught.value)
        assert caught.value.__suppress_context__  # a log's traceback shows no more than this
    assert len(s3_proxy.requests) == len(calls)


def test_a_store_travels_without_credentials(store: Store) -> None:
    for text in (pickle.dumps(store), repr(store).encode(), store.locate("a/b").encode()):
        assert not any(secret.encode() in text for secret in SECRETS.values())


def test_a_hash_in_a_manifest_cannot_name_a_file_of_the_cache(store: Store, tmp_path: Path) -> None:
    store.create("run/shard", b"x")
    with pytest.raises(CorruptFile, match="is not a hash"):
        store.fetch(FileEntry(path="shard", sha256="../../x", bytes=1), "run", tmp_path)


@pytest.mark.usefixtures("small_parts")
def test_a_data_file_is_never_replaced(store: Store) -> None:
    for size in (1000, 6 * MIB):
        first, second = store.open_write(f"run/{size}"), store.open_write(f"run/{size}")
        first.write(content(size))
        second.write(b"other" + content(size))
        first.close()
        with pytest.raises(StoreConflict):
            second.close()
        store.check(entry(str(size), content(size)), "run")
    assert uploads(store) == []


def test_a_server_that_does_not_know_if_none_match_is_refused(store: Store, s3_proxy: FaultProxy) -> None:
    body = b"<Error><Code>NotImplemented</Code><Message>A header you provided</Message></Error>"
    s3_proxy.answer = BUSY.replace(b"503 Service Unavailable", b"501 Not Implemented") % (len(body), body)
    s3_proxy.fault = lambda request: "answer" if "if-none-match" in request.headers.lower() else None
    with pytest.raises(PhotonError, match="does not support If-None-Match"):
        store.create("run/run.json", b"mine")


def test_a_write_that_meets_another_is_repeated(store: Store, s3_proxy: FaultProxy) -> None:
    body = b"<Error><Code>ConditionalRequestConflict</Code><Message>busy</Message></Error>"
    s3_proxy.answer = BUSY.replace(b"503 Service Unavailable", b"409 Conflict") % (len(body), body)
    s3_proxy.fault = lambda request: "answer" if request.method == "PUT" and len(s3_proxy.broken) < 3 else None
    store.create("run/run.json", b"mine")
    assert store.read("run/run.json") == b"mine"
    assert len(s3_proxy.broken) == 3
