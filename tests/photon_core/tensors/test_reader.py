"""Pieces of sharded tensors, small ones in one request; every order and size gives the same bytes."""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer

import numpy as np
import pytest

from photon_core.errors import CorruptFile
from photon_core.store.store import Store
from photon_core.tensors.reader import Array, Piece, TensorReader
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import FileEntry, TensorEntry
from tests.s3_server import FaultProxy

RNG = np.random.default_rng(0)
SHAPES: dict[str, tuple[int, ...]] = {"empty": (0, 3), "last": (), "row": (1, 5)}
for number in range(12):
    SHAPES |= {f"block{number:02d}.bias": (30,), f"block{number:02d}.weight": (30, 31)}
VALUES = {name: np.asarray(RNG.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def write(store: Store, max_bytes: int) -> list[FileEntry]:
    tensors = {name: TensorEntry(dtype="F32", shape=shape) for name, shape in SHAPES.items()}
    with ShardWriter(store, "rounds/1", "model/", shard_plan(tensors, max_bytes)) as writer:
        for name in writer.order:
            if VALUES[name].size:
                writer.write(name, VALUES[name].reshape(-1))
        return writer.close()


def pieces_of(reader: TensorReader, elements: int) -> list[Piece]:
    return [piece for name in sorted(SHAPES) for piece in reader.pieces(name, elements)]


@pytest.mark.parametrize("max_bytes", [4000, 1 << 20])
@pytest.mark.parametrize("elements", [200, 10_000])
@pytest.mark.parametrize("together, ahead, keep", [(0, 2, 0), (600, 1, 2), (1 << 20, 2, 1)])
def test_an_array_stays_until_as_many_more_were_asked_for(
    store: Store, max_bytes: int, elements: int, together: int, ahead: int, keep: int
) -> None:
    entries = write(store, max_bytes)
    with ThreadPoolExecutor(3) as pool, TensorReader(store, "rounds/1", entries, pool) as reader:
        pieces = pieces_of(reader, elements)
        held: deque[tuple[Piece, Array]] = deque(maxlen=keep + 1)
        found: dict[str, list[bytes]] = {name: [] for name in SHAPES}
        for piece, load in zip(pieces, reader.loads(pieces, "", ahead, keep, together), strict=True):
            held.append((piece, load()))
            if len(held) > keep:
                oldest, values = held[0]
                found[oldest.name].append(values.tobytes())
        for oldest, values in itertools.islice(held, 1 if len(pieces) > keep else 0, None):
            found[oldest.name].append(values.tobytes())
        assert {n: b"".join(parts) for n, parts in found.items()} == {n: v.tobytes() for n, v in VALUES.items()}
        assert all(file.verified for file in reader._files)  # hashed on the way: nothing is read twice
        reader.verify()


@pytest.mark.parametrize("together", [0, 500])
def test_pieces_are_asked_for_as_they_are_read(store: Store, together: int) -> None:
    with ThreadPoolExecutor(3) as pool, TensorReader(store, "rounds/1", write(store, 4000), pool) as reader:
        asked = iter(enumerate(pieces_of(reader, 30)))
        for given, load in enumerate(reader.loads((piece for _, piece in asked), "", 2, 1, together)):
            load()
            if given == 100:
                break
        number, _ = next(asked)
        assert given < number <= given + (4 if not together else 4 * 6), "three groups beyond the one in hand"


def test_a_header_on_its_way_is_waited_for(store: Store) -> None:
    """Read and hashed by the pool and by `verify` at once, a whole file would be reported as damaged."""
    gate = Event()
    with ThreadPoolExecutor(1) as pool, TensorReader(store, "rounds/1", write(store, 1 << 20), pool) as reader:
        (file,) = reader._files
        pool.submit(gate.wait, 60)
        file.prepare(pool)
        Timer(0.1, gate.set).start()
        reader.verify()
        assert file._opening is not None and file._opening.done() and file.verified


def test_small_neighbours_are_one_request(s3_proxy: FaultProxy, s3_bucket: str) -> None:
    store = Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_proxy.url)
    entries = write(store, 1 << 20)
    s3_proxy.requests.clear()
    with ThreadPoolExecutor(3) as pool, TensorReader(store, "rounds/1", entries, pool) as reader:
        pieces = pieces_of(reader, 10_000)
        for load in reader.loads(pieces, "", ahead=2, together=10_000):
            load()
    gets = [r for r in s3_proxy.requests if r.method == "GET"]
    total = sum(v.nbytes for v in VALUES.values())
    assert len(gets) <= 2 + 2 * total / 10_000 < len(pieces)  # two for the header


def test_what_is_damaged_is_told_to_all_who_read_it_together(s3_bucket: str, s3_endpoint: str) -> None:
    store = Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_endpoint)
    (entry,) = write(store, 1 << 20)
    data = store.read(f"rounds/1/{entry.path}")
    store.discard(f"rounds/1/{entry.path}")
    store.create(f"rounds/1/{entry.path}", data[:-1] + bytes([data[-1] ^ 1]))
    with ThreadPoolExecutor(3) as pool, TensorReader(store, "rounds/1", [entry], pool) as reader:
        pieces = pieces_of(reader, 10_000)
        coming = reader.loads(pieces, "", len(pieces), len(pieces), 1 << 20)
        for load in [next(coming) for _ in pieces]:
            with pytest.raises(CorruptFile, match="changed or damaged"):
                load()
