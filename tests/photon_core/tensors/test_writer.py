"""Shards written and read back in pieces, on every kind of store."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file
from typing_extensions import override

from photon_core.errors import CorruptFile
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import FileEntry, TensorEntry

SHAPES = {"a": (5, 3), "b": (), "c": (0, 7), "d": (40,), "e": (1, 1, 2), "z": (0,)}
TENSORS = {name: TensorEntry(dtype="F32", shape=shape) for name, shape in SHAPES.items()}
RNG = np.random.default_rng(0)
VALUES = {name: np.asarray(RNG.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def write(store: Store, pool: ThreadPoolExecutor | None = None, max_bytes: int = 80) -> list[FileEntry]:
    writer = ShardWriter(store, "rounds/1", "model/", shard_plan(TENSORS, max_bytes), pool)
    buffer = np.empty(4, np.float32)
    for name in writer.order:
        flat = VALUES[name].reshape(-1)
        for start in range(0, flat.size, 4):
            piece = buffer[: min(4, flat.size - start)]
            piece[:] = flat[start : start + 4]
            writer.write(name, piece)
    return writer.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("max_bytes", [1, 80, 1 << 20])
def test_written_shards_read_back(store: Store, threads: int, max_bytes: int) -> None:
    with ThreadPoolExecutor(max(threads, 1)) as executor:
        pool = executor if threads else None
        entries = write(store, pool, max_bytes)
        for entry in entries:
            store.check(entry, "rounds/1")
        assert {name for entry in entries for name in entry.tensors} == set(SHAPES)
        with TensorReader(store, "rounds/1", entries, pool) as reader:
            for name, values in VALUES.items():
                found = [chunk.copy() for chunk in reader.chunks(name, 7)]
                assert b"".join(chunk.tobytes() for chunk in found) == values.tobytes()
            reader.verify()


class SlowUploads(MemoryFileSystem):
    """Takes files slowly, and counts how many at a time."""

    protocol = "slow"
    lock, under_way, most = Lock(), 0, 0

    @override
    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        with self.lock:
            SlowUploads.under_way += 1
            SlowUploads.most = max(self.most, self.under_way)
        time.sleep(0.02)
        with self.lock:
            SlowUploads.under_way -= 1
        MemoryFileSystem.pipe_file(self, rpath.removeprefix("slow://"), Path(lpath).read_bytes())


def test_shards_do_not_pile_up_before_a_slow_server() -> None:
    """Some stores take a shard when it is whole: not more than two wait to be sent, however fast we write."""
    fsspec.register_implementation("slow", SlowUploads, clobber=True)
    store = Store(f"slow://{uuid.uuid4().hex}", single_writer=True)
    tensors = {"w": TensorEntry(dtype="F32", shape=(30,))}
    plan = shard_plan(tensors, 4)
    with ThreadPoolExecutor(8) as pool, ShardWriter(store, "rounds/1", "model/", plan, pool) as writer:
        writer.write("w", np.ones(30, np.float32))
        assert len(writer.close()) == 30
    assert 1 <= SlowUploads.most <= 2


def test_the_library_reads_the_shards(tmp_path: Path) -> None:
    for entry in write(Store(str(tmp_path))):
        found = load_file(tmp_path / "rounds/1" / entry.path)
        for name, part in entry.tensors.items():
            expected = VALUES[name] if part.rows is None else VALUES[name][slice(*part.rows)]
            assert np.array_equal(found[name], expected)
            assert found[name].shape == expected.shape == part.held


def test_names_differ_between_writers_and_bytes_do_not(store: Store) -> None:
    first, second = write(store), write(store)
    assert [e.sha256 for e in first] == [e.sha256 for e in second]
    assert not {e.path for e in first} & {e.path for e in second}
    assert first[0].path.startswith("model/00001-of-0000")


def test_tensors_have_their_turns(store: Store) -> None:
    writer = ShardWriter(store, "rounds/1", "model/", shard_plan(TENSORS))
    with pytest.raises(ValueError, match="of 'd' offered"):
        writer.write("d", np.zeros(1, np.float32))
    writer.write("a", np.zeros(14, np.float32))
    with pytest.raises(ValueError, match="8 bytes of 'a' offered; due: 4"):
        writer.write("a", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="not written whole"):
        writer.close()
    assert store.ls("rounds/1/model") == []


def test_an_error_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), ShardWriter(store, "r", "model/", shard_plan(TENSORS, 60)) as writer:
        writer.write("a", np.zeros(15, np.float32))
        writer.write("b", np.zeros(1, np.float32))
        raise KeyError
    assert store.ls("r/model") == []


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize("damage", ["flip", "header", "cut", "longer", "gone"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str, forwards: bool) -> None:
    store = Store(str(tmp_path))
    entries = write(store, max_bytes=1 << 20)
    path = tmp_path / "rounds/1" / entries[0].path
    data = bytearray(path.read_bytes())
    data[{"header": 12}.get(damage, -3)] ^= 1
    data = {"cut": data[:-8], "longer": data + b"more"}.get(damage, data)
    path.unlink()
    if damage != "gone":
        path.write_bytes(data)
    with pytest.raises(CorruptFile, match=path.name), TensorReader(store, "rounds/1", entries) as reader:
        for name in sorted(VALUES, reverse=not forwards):
            for _ in reader.chunks(name, 7):
                pass
        reader.verify()


def test_a_manifest_that_promises_other_tensors_is_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (entry,) = write(store, max_bytes=1 << 20)
    changed = {**entry.tensors, "d": TensorEntry(dtype="F32", shape=(4, 10))}
    with (
        TensorReader(store, "rounds/1", [entry.model_copy(update={"tensors": changed})]) as reader,
        pytest.raises(CorruptFile, match="holds other tensors"),
    ):
        next(reader.chunks("a", 5))
