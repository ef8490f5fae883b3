"""Means of the sites' parameters in a fixed order: weighted, trimmed, median; and token weights."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def token_weights(tokens: Mapping[str, int]) -> dict[str, float]:
    """Each site's share of the trained tokens, in the order of site names; the shares sum to 1."""
    total = sum(tokens.values())
    return {site: tokens[site] / total for site in sorted(tokens)}


def weighted_mean(parameters: Float32, weights: Sequence[float], out: Float32, scratch: Float32) -> Float32:
    """sum_k w_k theta_k in float32, as theta_1 - sum_k w_k (theta_1 - theta_k), summed in the order given.

    The two forms are equal, since the weights sum to 1, but the second is rounded only once at the parameters' own
    scale. It is exact, to the sign of a zero, for one site and for sites that agree, whatever their weights.

    Args:
        parameters: theta_k of every site, a row each.
        weights: shares of the sites, which sum to 1.
        out: result array of a row's shape; no row of `parameters`.
        scratch: work array of the parameters' shape.

    Returns:
        `out`.
    """
    first, changes = parameters[0], scratch[1:]
    if len(parameters) == 1:
        np.copyto(out, first)
        return out
    np.subtract(first, parameters[1:], out=changes)
    np.multiply(changes, np.asarray(weights[1:], np.float32)[:, None], out=changes)
    out.fill(0)
    for change in changes:
        np.add(out, change, out=out)
    return np.subtract(first, out, out=out)


def median(parameters: Float32, out: Float32) -> Float32:
    """The median over the sites, element by element; for an even number of sites the mean of the middle two."""
    return middle_mean(parameters, (len(parameters) - 1) // 2, out)


def trimmed_mean(parameters: Float32, trim: float, out: Float32) -> Float32:
    """The mean over the sites without the ceil(trim K) least and largest values, element by element."""
    count = len(parameters)
    return middle_mean(parameters, min(math.ceil(trim * count), (count - 1) // 2), out)


def middle_mean(parameters: Float32, cut: int, out: Float32) -> Float32:
    """The mean without the `cut` least and largest values, element by element."""
    rows = parameters.copy()
    for low, high in sorting_network(len(rows)):
        np.minimum(rows[low], rows[high], out=out)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low] = out
    left = rows[cut : len(rows) - cut]
    np.copyto(out, left[0])
    for count, row in enumerate(left[1:], 2):  # a running mean: exact where they agree, and nothing overflows
        np.subtract(row, out, out=row)
        np.multiply(row, np.float32(1 / count), out=row)
        np.add(out, row, out=out)
    return out


def sorting_network(count: int) -> Iterator[tuple[int, int]]:
    """The pairs to put in order, one after the other. Applied to whole rows, they sort every column.

    Source: Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M).
    """
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top if count > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(count - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2


def bounds(norms: Mapping[str, float], factor: float) -> dict[str, float]:
    """Each site's factor for its change, so that the norm is at most `factor` times the sites' median norm."""
    limit = factor * float(np.median(list(norms.values())))
    return {site: min(1.0, limit / norm) if norm else 1.0 for site, norm in norms.items()}
