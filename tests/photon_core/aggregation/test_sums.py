"""Sums of products: exact to float64's last digits, in the same bits however the rows are cut."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.sums import BLOCK, TOGETHER, Sums, TensorSums, block_sums

Rows = list[np.ndarray[Any, np.dtype[np.float32]]]


def draw(count: int, size: int, seed: int = 0) -> Rows:
    """Rows whose elements differ by up to six orders of magnitude."""
    rng = np.random.default_rng(seed)
    return list((rng.standard_normal((count, size)) * 10 ** rng.uniform(-4, 2, (count, size))).astype(np.float32))


def summed(rows: Rows, queries: int = 1, cuts: Sequence[int] = ()) -> Sums:
    """Of one tensor, added piece by piece."""
    tensor, size = TensorSums(), rows[0].size
    for start, end in zip([0, *cuts], [*cuts, size], strict=True):
        tensor.add(block_sums([row[start:end] for row in rows], queries))
    return Sums.of([tensor.result()], size)


@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, (TOGETHER + 2) * BLOCK + 77])
def test_as_exact_as_float64(size: int) -> None:
    """Against a sum that is rounded once."""
    rows = draw(3, size)
    found = summed(rows, queries=2)
    exact = [[math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    norms = np.sqrt(np.diag(exact))
    assert found.elements == size
    assert (np.abs(found.squares / np.diag(exact) - 1) < 1e-12).all()
    assert (np.abs(found.products - exact[:2]) < 1e-12 * np.outer(norms[:2], norms)).all()


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, TOGETHER, 13])
def test_pieces_change_no_bit(blocks: int) -> None:
    size = 13 * BLOCK + 5
    rows = draw(4, size)
    whole, cut = summed(rows, 2), summed(rows, 2, range(blocks * BLOCK, size, blocks * BLOCK))
    assert cut.products.tobytes() == whole.products.tobytes() and cut.squares.tobytes() == whole.squares.tobytes()


def test_a_rows_sums_do_not_depend_on_the_other_rows() -> None:
    rows = draw(5, 2 * BLOCK + 9)
    found, alone = summed(rows, 3), summed([rows[2], rows[4]])
    assert (found.products[2, 2], found.products[2, 4]) == tuple(alone.products[0])
    assert (found.squares[2], found.squares[4]) == tuple(alone.squares)


def test_cosines() -> None:
    rows = [np.array(row, np.float32) for row in [(3, 4), (0, 0), (6, 8), (-3, -4), (4, -3), (0.3, 1e-38)]]
    found = summed(rows, queries=2).cosines()
    assert found[0].tolist() == [1, 0, 1, -1, 0, pytest.approx(0.6)]
    assert found[1].tolist() == [0] * 6


def test_the_largest_and_the_smallest_numbers() -> None:
    """Their squares are beyond float32."""
    large, small = np.full(BLOCK + 1, 3.4e38, np.float32), np.full(BLOCK + 1, 1e-45, np.float32)
    found = summed([large, small])
    assert np.isfinite(found.squares).all() and (found.squares > 0).all()
    assert found.cosines()[0].tolist() == [pytest.approx(1), pytest.approx(1)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_its_own_square(bad: float) -> None:
    rows = draw(3, BLOCK + 3)
    rows[0][1], rows[2][BLOCK] = 0, bad
    assert np.isfinite(summed(rows).squares).tolist() == [True, True, False]


def test_a_layers_tensors_are_added_in_their_order() -> None:
    parts = [summed(draw(2, size, seed=size)) for size in (5, 3 * BLOCK, BLOCK - 1)]
    found = Sums.of([np.concatenate([one.products, one.squares[None]]) for one in parts], 9)
    for name in ("products", "squares"):
        one, two, three = (getattr(part, name) for part in parts)
        assert getattr(found, name).tobytes() == (one + two + three).tobytes()
