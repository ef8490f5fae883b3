"""The sums of a pool, streamed from files: as of whole arrays, in the same bits; who is named for bad files."""

import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.scoring import Row, layer_sums
from photon_core.aggregation.sums import BLOCK, Sums, TensorSums, block_sums
from photon_core.errors import CorruptFile, UpdateRejected
from photon_core.store.store import Store
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import TensorEntry

Arrays = Mapping[str, np.ndarray[Any, Any]]
SHAPES = {"blocks.3.b": (3 * BLOCK + 100,), "blocks.3.a": (50, 200), "blocks.3.c": (7,), "blocks.3.none": (0, 4)}
DTYPES = {"float32": "F32", "uint16": "BF16"}


def arrays(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def put(store: Store, folder: str, values: Arrays, member: str = "", max_bytes: int = 1 << 14) -> Row:
    tensors = {
        name: TensorEntry(dtype=DTYPES[str(value.dtype)], shape=value.shape) for name, value in values.items()
    }
    with ShardWriter(store, folder, "blocks.3-", shard_plan(tensors, max_bytes)) as writer:
        for name in writer.order:
            if values[name].size:
                writer.write(name, values[name].reshape(-1))
        return Row(store, folder, writer.close(), member)


def whole(rows: list[Arrays], queries: int = 1) -> Sums:
    """From arrays in memory, each tensor at once."""
    found = []
    for name in sorted(name for name, shape in SHAPES.items() if 0 not in shape):
        tensor = TensorSums()
        tensor.add(block_sums([row[name].reshape(-1) for row in rows], queries))
        found.append(tensor.result())
    return Sums.of(found, sum(array.size for array in rows[0].values()))


def same(one: Sums, other: Sums) -> bool:
    return (one.products.tobytes(), one.squares.tobytes(), one.elements) == (
        (other.products.tobytes(), other.squares.tobytes(), other.elements)
    )


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def pool(disk: Store) -> list[Row]:
    """The own layer and two members'."""
    return [put(disk, name or "own", arrays(seed), name) for seed, name in enumerate(["", "ann", "bob"])]


def test_in_every_kind_of_store(store: Store) -> None:
    values = [arrays(seed) for seed in range(3)]
    rows = [put(store, f"folder{number}", one) for number, one in enumerate(values)]
    assert same(layer_sums(SHAPES, rows), whole(values))


def test_rows_of_several_stores(disk: Store, tmp_path: Path) -> None:
    """A child's own layer, and its parent's."""
    stores = [disk, Store(str(tmp_path / "parents")), Store("memory://of-a-third")]
    values = [arrays(seed) for seed in range(3)]
    rows = [put(store, "here", one) for store, one in zip(stores, values, strict=True)]
    assert same(layer_sums(SHAPES, rows), whole(values))


@pytest.mark.parametrize("threads", [0, 1, None])
@pytest.mark.parametrize("piece", [1, BLOCK, 3 * BLOCK, None])
def test_neither_pieces_nor_threads_nor_files_change_a_bit(
    disk: Store, threads: int | None, piece: int | None
) -> None:
    values = [arrays(seed) for seed in range(3)]
    rows = [put(disk, f"f{number}", one, max_bytes=1 << 12 + number) for number, one in enumerate(values)]
    found = layer_sums(SHAPES, rows, queries=2, limits=Limits(threads=threads, piece=piece))
    assert same(found, whole(values, queries=2))


def test_cosines_of_residuals_with_the_mean_and_with_the_members(disk: Store) -> None:
    """All in one stream: the queries are the new mean and what was handed up."""
    mean, residual, ann, bob = (arrays(seed) for seed in range(4))
    rows = [put(disk, str(number), one) for number, one in enumerate([mean, residual, ann, bob])]
    found = layer_sums(SHAPES, rows, queries=2).cosines()
    flat = [
        np.concatenate([one[name].reshape(-1) for name in SHAPES]).astype(np.float64)
        for one in (mean, residual, ann, bob)
    ]
    expected = [[x @ y / np.sqrt((x @ x) * (y @ y)) for y in flat] for x in flat[:2]]
    assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [0, None])
def test_a_members_nan_is_named(disk: Store, pool: list[Row], bad: float, threads: int | None) -> None:
    values = arrays(5)
    values["blocks.3.b"][2 * BLOCK] = bad
    rows = [*pool, put(disk, "cleo", values, "cleo")]
    with pytest.raises(UpdateRejected, match=r"'blocks\.3\.b' .* holds NaN or Inf") as caught:
        layer_sums(SHAPES, rows, limits=Limits(threads=threads, piece=BLOCK))
    assert caught.value.site == "cleo"
    with pytest.raises(CorruptFile, match=r"'blocks\.3\.b' .* holds NaN or Inf"):
        layer_sums(SHAPES, [rows[-1]._replace(member=""), *pool[1:]])


@pytest.mark.parametrize("number", [0, 1, 2], ids=["own", "ann", "bob"])
@pytest.mark.parametrize("file", [0, -1], ids=["first", "last"])
def test_every_files_hash_is_verified(tmp_path: Path, pool: list[Row], number: int, file: int) -> None:
    row = pool[number]
    path = tmp_path / "store" / row.folder / row.files[file].path
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the last bit of a number
    path.write_bytes(data)
    with pytest.raises(UpdateRejected if row.member else CorruptFile, match="does not have the blake3") as caught:
        layer_sums(SHAPES, pool)
    assert getattr(caught.value, "site", "") == row.member


def changed(**tensors: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    new = {f"blocks.3.{name}": value for name, value in tensors.items()}
    return lambda values: {name: value for name, value in {**values, **new}.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(c=None), r"tensor 'blocks\.3\.c' is missing"),
        (changed(d=np.zeros(3, np.float32)), r"tensor 'blocks\.3\.d' is not one of it"),
        (changed(c=np.zeros((7, 1), np.float32)), r"tensor 'blocks\.3\.c' .* has another shape or dtype"),
        (changed(c=np.zeros(7, np.uint16)), r"tensor 'blocks\.3\.c' .* has another shape or dtype"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_other_tensors_are_refused(disk: Store, pool: list[Row], change: Any, message: str) -> None:
    row = put(disk, "cleo", change(arrays(5)), "cleo")
    with pytest.raises(UpdateRejected, match=message) as caught:
        layer_sums(SHAPES, [*pool, row])
    assert caught.value.site == "cleo"
    with pytest.raises(CorruptFile, match=message):
        layer_sums(SHAPES, [row._replace(member=""), *pool])


def test_a_missing_file_is_the_members_fault(tmp_path: Path, pool: list[Row]) -> None:
    (tmp_path / "store" / "bob" / pool[2].files[-1].path).unlink()
    with pytest.raises(UpdateRejected, match="is missing, although a manifest covers it") as caught:
        layer_sums(SHAPES, pool)
    assert caught.value.site == "bob"


@pytest.mark.parametrize("threads", [0, 2])
def test_memory_is_what_the_limit_says(disk: Store, threads: int) -> None:
    """24 rows of 1 MiB within 4 MiB, and what is worked on."""
    size, limits = 1 << 18, Limits(memory_bytes=4 << 20, threads=threads)
    row = put(disk, "row", {"w": np.ones(size, np.float32)}, max_bytes=1 << 18)
    layer_sums({"w": (size,)}, [row] * 2, limits=limits)  # what it imports stays
    tracemalloc.start()
    try:
        layer_sums({"w": (size,)}, [row] * 24, limits=limits)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
