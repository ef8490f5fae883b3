"""Inner products of key layers, bit-identical for any pieces, any number of threads and any machine.

The product of two float32 values is exact in float64. All additions are element-wise, in a fixed order, without
BLAS: by halving within a block, by pairs of blocks within a tensor, by tensors' names within a layer.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
BLOCK = 1 << 12  # elements of a block, counted from a tensor's start; a power of two
TOGETHER = 16  # blocks that are summed side by side, in a core's cache


class Sums(NamedTuple):
    """Inner products of the rows of a pool. The first rows are the queries.

    Args:
        products: <x_i, x_j>, an array (queries, rows).
        squares: |x_j|^2 of each row.
        elements: number of elements of a row.
    """

    products: Float64
    squares: Float64
    elements: int

    @classmethod
    def of(cls, tensors: Iterable[Float64], elements: int) -> "Sums":
        """The sums of a layer from those of its tensors (`TensorSums.result`), in the order of their names."""
        first, *others = tensors
        total = first.copy()
        for values in others:
            total += values
        return cls(total[:-1], total[-1], elements)

    def cosines(self) -> Float64:
        """Cosine of each query with each row; 0 if one of them is 0."""
        norms = np.sqrt(self.squares)
        scale = norms[: len(self.products), None] * norms
        found = np.divide(self.products, scale, out=np.zeros_like(scale), where=scale > 0)
        return np.clip(found, -1.0, 1.0)

    def distances(self) -> Float64:
        """Of each row from the first query; of near ones only as exact as their squares allow."""
        return np.sqrt(np.maximum(self.squares + self.squares[0] - 2 * self.products[0], 0.0))


def block_sums(rows: Sequence[Float32], queries: int = 1) -> Float64:
    """Sums of each block of a piece. The square of a row is not finite if, and only if, it has NaN or Inf.

    Args:
        rows: elements of every row, from the same place: from a multiple of BLOCK of their tensor to another or
            to the tensor's end.
        queries: number of first rows whose products with all rows are computed.

    Returns:
        an array (blocks, queries + 1, rows): each query's products, then the squares.
    """
    size, run = rows[0].size, TOGETHER * BLOCK
    found = np.empty((-(-size // BLOCK), queries + 1, len(rows)))
    work = np.empty((TOGETHER, BLOCK))
    for start in range(0, size, run):
        first = start // BLOCK
        for j, row in enumerate(rows):
            for i, other in enumerate([*rows[:queries], row]):
                values = _halved(other[start : start + run], row[start : start + run], work)
                found[first : first + TOGETHER, i, j] = values
    return found


def _halved(a: Float32, b: Float32, work: Float64) -> Float64:
    """Sum of the products of each block: its second half is added to its first until one element remains."""
    blocks, flat = work[: -(-a.size // BLOCK)], work.reshape(-1)
    flat[a.size : blocks.size] = 0
    length = BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(a, b, out=flat[: a.size], dtype=np.float64)
        while length > 1:
            length //= 2
            np.add(blocks[:, :length], blocks[:, length : 2 * length], out=blocks[:, :length])
    return blocks[:, 0]


class TensorSums:
    """The sum over a tensor's blocks: pairs of neighbours, then pairs of pairs. Keeps one sum of each size."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Float64]] = []  # number of blocks, falling, and their sum

    def add(self, blocks: Float64) -> None:
        """Add the next blocks, from `block_sums`."""
        for values in blocks:
            count, total = 1, values
            while self._kept and self._kept[-1][0] == count:
                count, total = 2 * count, self._kept.pop()[1] + total
            self._kept.append((count, total))

    def result(self) -> Float64:
        """The sums, an array (queries + 1, rows). The tensor must not be empty."""
        found = self._kept[-1][1]
        for _, total in reversed(self._kept[:-1]):
            found = total + found
        return found
