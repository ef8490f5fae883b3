"""Means that one bad site of many cannot carry away, on the pieces of the one pass over the updates.

Yin et al. 2018 (arXiv 1803.01498): coordinate-wise median and trimmed mean, in which all sites count alike. Sun et
al. 2019 (arXiv 1911.07963): norm bounding, which keeps the weights.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def median(parameters: Float32, out: Float32) -> Float32:
    """Of every coordinate the middle value over the sites; of an even number the mean of the two."""
    return middle_mean(parameters, (len(parameters) - 1) // 2, out)


def trimmed_mean(parameters: Float32, trim: float, out: Float32) -> Float32:
    """Of every coordinate the mean over the sites without the least and the largest ceil(trim K)."""
    count = len(parameters)
    return middle_mean(parameters, min(math.ceil(trim * count), (count - 1) // 2), out)


def middle_mean(parameters: Float32, cut: int, out: Float32) -> Float32:
    """The mean of what is left of every coordinate when the least and the largest `cut` are gone."""
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
    """Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M): the pairs to put in
    order, one after the other; whole rows at a time, it sorts every column."""
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
    """What each site's change is multiplied by so that its norm is at most `factor` times the sites' median."""
    limit = factor * float(np.median(list(norms.values())))
    return {site: min(1.0, limit / norm) if norm else 1.0 for site, norm in norms.items()}
