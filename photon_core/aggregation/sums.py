"""Inner products of key layers, in bits that depend neither on pieces and threads nor on the machine.

The product of two float32 is exact in float64. Products are added by halving in a block, blocks in pairs in a
tensor, tensors in the order of their names in a layer: element-wise additions in a fixed order, no BLAS.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
BLOCK = 1 << 12  # elements whose products are halved together, counted from a tensor's start; a power of two
TOGETHER = 16  # blocks that are worked on side by side, in a core's cache


class Sums(NamedTuple):
    """Of the rows of a pool, the first of which are the queries.

    Args:
        products: an array (queries, rows) of <x_i, x_j>.
        squares: |x_j|^2 of each row.
        elements: of a row.
    """

    products: Float64
    squares: Float64
    elements: int

    @classmethod
    def of(cls, tensors: Iterable[Float64], elements: int) -> "Sums":
        """Of a layer's tensors, each as `TensorSums.result` gives it, in the order of their names."""
        first, *others = tensors
        total = first.copy()
        for values in others:
            total += values
        return cls(total[:-1], total[-1], elements)

    def cosines(self) -> Float64:
        """Of each query with each row; 0 where one of them is 0."""
        norms = np.sqrt(self.squares)
        scale = norms[: len(self.products), None] * norms
        found = np.divide(self.products, scale, out=np.zeros_like(scale), where=scale > 0)
        return np.clip(found, -1.0, 1.0)


def block_sums(rows: Sequence[Float32], queries: int = 1) -> Float64:
    """Of each block of a piece. A row with NaN or Inf has a square that is not finite; no other row has.

    Args:
        rows: the same elements of every row; they begin at a multiple of BLOCK of their tensor, and end at one or
            with the tensor.
        queries: number of the first rows whose products with all rows are asked for.

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
    """Sums of the products of each block: its second half is added to its first until one element is left."""
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
    """The sum over a tensor's blocks: neighbours in pairs, then pairs; at most one sum of each size is kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Float64]] = []  # number of blocks, falling, and their sum

    def add(self, blocks: Float64) -> None:
        """The next blocks, as `block_sums` gives them."""
        for values in blocks:
            count, total = 1, values
            while self._kept and self._kept[-1][0] == count:
                count, total = 2 * count, self._kept.pop()[1] + total
            self._kept.append((count, total))

    def result(self) -> Float64:
        """An array (queries + 1, rows). The tensor has an element."""
        found = self._kept[-1][1]
        for _, total in reversed(self._kept[:-1]):
            found = total + found
        return found
