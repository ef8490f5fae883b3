"""Attention over one key layer of several nodes (WorldLM, Algorithm 1, lines 5 and 17).

Row 0 of the pool is the node's own layer x_0, the only query. The other rows are its parent's and its members', or
residuals. A row is a whole key layer, its tensors flattened in the order of their names. Each row gets one weight:

    cosine   s_j = <x_0, x_j> / (|x_0| |x_j|)     (0 where a norm is 0)
    dot      s_j = <x_0, x_j> / sqrt(d)           d: elements of the layer
    mean     s_j = 0
    a_j = w_j exp((s_j - max s) / tau) / sum_i w_i exp((s_i - max s) / tau)
    y   = sum_j a_j x_j

The paper (Iacob et al. 2024, arXiv 2405.14446) names neither scale, normalisation nor temperature: all three are
choices. Cosine with a temperature is the weighting of HeurFedAMP (Huang et al. 2021, arXiv 2007.03797).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.sections.worldlm import WorldLM

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
BLOCK = 1 << 15  # elements whose products are summed together, counted from a tensor's start
LEAST_SPREAD = 1e-6  # of cosines, so that equal rows have a temperature


class Sums(NamedTuple):
    """What scores are made of, for every row j of a pool: <x_0, x_j> and |x_j|^2, float64."""

    products: Float64
    squares: Float64


class TensorSums:
    """The sums of one tensor, piece by piece, in bits that depend neither on the pieces nor on the machine.

    The product of two float32 is exact in float64. Sums are made by halving, in blocks of fixed places and then
    over the blocks: element-wise additions in a fixed order, no BLAS.

    Args:
        rows: number of rows.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._blocks = rows, list[Float64]()

    def add(self, piece: Float32) -> None:
        """The next elements of all rows: an array (rows, n), n a multiple of BLOCK but for the last piece."""
        for start in range(0, piece.shape[1], BLOCK):
            rows = piece[:, start : start + BLOCK].astype(np.float64)
            both = np.concatenate([rows[:1] * rows, rows * rows])
            self._blocks.append(halved(both))

    def result(self) -> Sums:
        total = halved(np.stack(self._blocks, axis=1)) if self._blocks else np.zeros(2 * self._rows)
        return Sums(total[: self._rows], total[self._rows :])


def halved(values: Float64) -> Float64:
    """The sum of each row: its second half is added to its first until one element is left, zeros making up."""
    length = 1 << max(values.shape[1] - 1, 0).bit_length()
    work = np.zeros((values.shape[0], length))
    work[:, : values.shape[1]] = values
    while length > 1:
        length //= 2
        work = work[:, :length] + work[:, length:]
    return work[:, 0]


def total(parts: Iterable[Sums]) -> Sums:
    """The sums of a key layer: over its tensors, in the order of their names."""
    products, squares = zip(*parts, strict=True)
    return Sums(_added(products), _added(squares))


def _added(values: Sequence[Float64]) -> Float64:
    result = values[0].copy()
    for value in values[1:]:
        result += value
    return result


def cosines(sums: Sums) -> Float64:
    """Of row 0 with every row; 0 where one of them is 0."""
    norms = np.sqrt(sums.squares)
    scale = norms[0] * norms
    return np.divide(sums.products, scale, out=np.zeros_like(scale), where=scale > 0)


def scores(sums: Sums, elements: int, worldlm: WorldLM) -> Float64:
    """s_j for every row.

    Args:
        sums: of the pool.
        elements: d, elements of the key layer.
        worldlm: the node's settings.
    """
    if worldlm.attention == "mean":
        return np.zeros_like(sums.products)
    return cosines(sums) if worldlm.attention == "cosine" else sums.products / np.sqrt(elements)


def tau_of(scores: Float64, worldlm: WorldLM) -> float:
    """The formula's temperature: with cosine the file's in units of 1 minus the other rows' mean cosine."""
    if worldlm.attention != "cosine" or len(scores) < 2:
        return worldlm.temperature
    return worldlm.temperature * max(1.0 - float(np.mean(scores[1:])), LEAST_SPREAD)


def weights(scores: Float64, tau: float, shares: Sequence[float] | None = None, own_row: bool = True) -> Float32:
    """a_j for every row, rounded to float32: all that a node's key layer depends on beside the rows themselves.

    Args:
        scores: s_j of the pool.
        tau: temperature of the formula; 0 keeps the own row.
        shares: w_j; all 1 by default.
        own_row: flag: the own row takes part; it does where there is no other.
    """
    if len(scores) == 1 or tau == 0:
        return np.eye(1, len(scores), dtype=np.float32)[0]
    taking = slice(None) if own_row else slice(1, None)
    values = np.zeros(len(scores))
    values[taking] = np.exp((scores[taking] - scores[taking].max()) / tau)
    values *= np.ones(len(scores)) if shares is None else np.asarray(shares, np.float64)
    return (values / values.sum()).astype(np.float32)


def entropy(weights: Sequence[float]) -> float:
    """Of a row of weights, in nats: 0 where one row has all, the logarithm of their number where all are equal."""
    values = np.asarray([weight for weight in weights if weight > 0])
    return float(-(values * np.log(values)).sum()) + 0.0
