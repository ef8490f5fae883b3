"""The store's rule on every kind of store: created once, whole or not at all, never outside its prefix."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from photon_core.errors import CorruptFile, PhotonError, StoreConflict
from photon_core.hashing import sha256_bytes
from photon_core.store.store import Store
from schemas.manifests import FileEntry

ESCAPES = ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/./b", "a\\b", "a\0b", "a\nb", "a/", "..\\x"]


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, sha256=sha256_bytes(data), bytes=len(data))


def test_create_read_list(store: Store) -> None:
    assert not store.exists("run/rounds/000001/round.json")
    assert store.ls("run") == []
    with pytest.raises(FileNotFoundError):
        store.read("run/rounds/000001/round.json")
    store.create("run/rounds/000001/round.json", b"content")
    store.create("run/rounds/000002/round.json", b"")
    assert store.read("run/rounds/000001/round.json") == b"content"
    assert store.read("run/rounds/000002/round.json") == b""
    assert store.exists("run/rounds/000001/round.json")
    assert store.size("run/rounds/000001/round.json") == 7
    assert store.ls("run/rounds") == ["000001", "000002"]
    assert store.ls("run/rounds/000001") == ["round.json"]
    assert store.ls("") == ["run"]
    assert store.read_range("run/rounds/000001/round.json", 2, 5) == b"nte"
    with store.open_read("run/rounds/000001/round.json") as file:
        assert file.read() == b"content"


def test_create_never_overwrites(store: Store) -> None:
    store.create("a/round.json", b"first")
    with pytest.raises(StoreConflict):
        store.create("a/round.json", b"second")
    assert store.read("a/round.json") == b"first"
    assert store.ls("a") == ["round.json"]


def test_one_of_racing_threads_wins(store: Store) -> None:
    def attempt(number: int) -> int | None:
        try:
            store.create("race/round.json", b"%d" % number * 1000)
        except StoreConflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [n for n in pool.map(attempt, range(16)) if n is not None]
    assert len(winners) == 1
    assert store.read("race/round.json") == b"%d" % winners[0] * 1000


def test_a_streamed_file_appears_when_closed(store: Store) -> None:
    with store.open_write("data/file") as file:
        for _ in range(3):
            file.write(memoryview(b"0123456789" * 100))
        assert not store.exists("data/file")
        assert store.ls("data") == []
    assert store.read("data/file") == b"0123456789" * 300
    assert store.ls("data") == ["file"]


def test_a_streamed_file_does_not_appear_after_an_error(store: Store) -> None:
    with pytest.raises(KeyError), store.open_write("data/file") as file:
        file.write(b"half")
        raise KeyError
    assert not store.exists("data/file")
    assert store.ls("data") == []


def test_put_and_discard(store: Store, tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"tensor bytes")
    store.put(tmp_path / "shard", "run/model/shard-1")
    assert store.read("run/model/shard-1") == b"tensor bytes"
    store.discard("run/model/shard-1")
    store.discard("run/model/shard-1")
    assert not store.exists("run/model/shard-1")
    assert (tmp_path / "shard").exists()


def test_put_tells_a_taken_name_on_a_local_disk(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "shard").write_bytes(b"new")
    store.create("shard", b"old")
    with pytest.raises(StoreConflict):
        store.put(tmp_path / "shard", "shard")
    assert store.read("shard") == b"old"


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leaves_the_store(path: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "x").write_bytes(b"outside")
    for use in (store.read, store.exists, store.open_read, store.open_write, store.size, store.discard):
        with pytest.raises(PhotonError, match="not a path inside the store"):
            use(path)
    if path:  # the store's own folder may be listed
        with pytest.raises(PhotonError):
            store.ls(path)
    with pytest.raises(PhotonError):
        store.create(path, b"")
    with pytest.raises(PhotonError):
        store.put(tmp_path / "x", path)
    with pytest.raises(PhotonError):
        store.read_range(path, 0, 1)
    for fetched in (entry(path, b"outside"), entry("x", b"outside")):
        with pytest.raises(PhotonError):
            store.fetch(fetched, path, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_fetch_gives_a_verified_local_file(store: Store, tmp_path: Path) -> None:
    data = b"theta" * 1000
    store.create("run/model/shard", data)
    cache = tmp_path / "cache"
    local = store.fetch(entry("model/shard", data), "run", cache)
    assert local.read_bytes() == data
    assert store.fetch(entry("model/shard", data), "run", cache) == local
    assert store.is_local or [p.name for p in cache.iterdir()] == [sha256_bytes(data)]


def test_fetch_mends_its_cache(s3: Store, tmp_path: Path) -> None:
    s3.create("shard", b"theta")
    local = s3.fetch(entry("shard", b"theta"), "run", tmp_path) if s3.exists("run/shard") else None
    assert local is None
    s3.create("run/shard", b"theta")
    local = s3.fetch(entry("shard", b"theta"), "run", tmp_path)
    local.write_bytes(b"thetb")
    assert s3.fetch(entry("shard", b"theta"), "run", tmp_path).read_bytes() == b"theta"


@pytest.mark.parametrize("stored", [b"thetb", b"thet", b"theta and more", None])
def test_fetch_and_check_name_a_damaged_file(store: Store, tmp_path: Path, stored: bytes | None) -> None:
    if stored is not None:
        store.create("run/model/shard", stored)
    covered = entry("model/shard", b"theta")
    with pytest.raises(CorruptFile, match="run/model/shard"):
        store.fetch(covered, "run", tmp_path / "cache")
    with pytest.raises(CorruptFile, match="run/model/shard"):
        store.check(covered, "run")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_fetch_waits_for_nothing_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """On a shared disk, as another user may leave it."""
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / "shard")
    with pytest.raises(CorruptFile, match="shard is "):
        Store(str(tmp_path)).fetch(entry("shard", b"theta"), "run", tmp_path / "cache")


def test_read_is_bounded(store: Store) -> None:
    store.create("round.json", b"x" * 100)
    assert store.read("round.json", limit=100)
    with pytest.raises(CorruptFile, match="at most 99"):
        store.read("round.json", limit=99)


def test_a_store_travels_to_other_processes(store: Store) -> None:
    store.create("file", b"content")
    assert pickle.loads(pickle.dumps(store)).read("file") == b"content"


def test_a_server_that_ignores_if_none_match_is_refused(careless_s3: Callable[..., Store]) -> None:
    store = careless_s3()
    with pytest.raises(PhotonError, match="ignores If-None-Match"):
        store.create("run/run.json", b"mine")
    assert not store.exists("run/run.json")
    assert store.ls("run") == []


def test_a_single_writer_may_use_it_all_the_same(careless_s3: Callable[..., Store]) -> None:
    store = careless_s3(single_writer=True)
    store.create("run/run.json", b"mine")
    assert store.read("run/run.json") == b"mine"


def test_a_folder_url_is_local(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}"):
        store = Store(url)
        assert store.is_local
        assert store.url == str(tmp_path)


def test_importing_the_store_is_light() -> None:
    heavy = "numpy, pydantic, fsspec, torch, prefect"
    code = f"import sys, photon_core.store.store; print([m for m in {heavy.split(', ')!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_many_files_are_fetched_side_by_side_and_each_is_verified(store: Store, tmp_path: Path) -> None:
    contents = [b"shard %d" % number for number in range(9)]
    entries = [entry(f"model/{number}", content) for number, content in enumerate(contents)]
    for one, content in zip(entries, contents, strict=True):
        store.create(f"run/{one.path}", content)
    for _ in range(2):
        found = store.fetch_all(entries, "run", tmp_path, 4)
        assert [path.read_bytes() for path in found] == contents
    assert store.fetch_all([], "run", tmp_path, 4) == []
    wrong = [*entries[:5], entry("model/5", b"shard X"), *entries[6:]]
    with pytest.raises(CorruptFile, match="model/5"):
        store.fetch_all(wrong, "run", tmp_path, 4)


def test_a_false_sha256_beside_a_right_blake3_misleads_nobody(s3: Store, tmp_path: Path) -> None:
    """It passes for what its blake3 says, and its copy never passes for what its sha256 says."""
    s3.create("run/theirs", b"theirs")
    s3.create("run/ours", b"theirs".upper())
    lie = entry("theirs", b"THEIRS").model_copy(update={"blake3": blake3(b"theirs").hexdigest()})
    s3.check(lie, "run")
    assert s3.fetch(lie, "run", tmp_path).read_bytes() == b"theirs"
    assert s3.fetch(entry("ours", b"THEIRS"), "run", tmp_path).read_bytes() == b"THEIRS"
    with pytest.raises(CorruptFile, match="blake3"):
        s3.check(lie.model_copy(update={"path": "ours"}), "run")
