"""Cosines between the updates of each two sites, from a bounded part of the model."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SITES = 16  # more have no pairs: K^2 of them are too many to look at, and to reckon
ALONE = 1 << 17  # K^2 run: a product so small that BLAS starts no threads for it
ELEMENTS = 1 << 22  # parameters that are looked at: all of a small model's, evenly spread pieces of a large one's


class Pairs:
    """Inner products of the sites' pseudo-gradients, K^2 ELEMENTS operations at most however large the model is.

    Args:
        sites: names, in the order of the rows of `gram`.
        elements: of the whole model; they come in pieces of like size.

    Attributes:
        gram: the sum of `gram` over the pieces that were looked at; the caller adds to it.
    """

    def __init__(self, sites: Sequence[str], elements: int) -> None:
        self._sites = sites
        self.gram = np.zeros((len(sites), len(sites)))
        self._every = max(1, math.ceil(elements / ELEMENTS))
        self._piece = 0

    def turn(self) -> bool:
        """Whether the next piece is to be looked at."""
        self._piece += 1
        return 1 < len(self._sites) <= SITES and (self._piece - 1) % self._every == 0

    def result(self) -> dict[str, float]:
        """cosine_pair/<site>/<site>, names in order; none where a square or a product is 0 or overflows."""
        found = {}
        norms = np.sqrt(np.diag(self.gram))
        for i, one in enumerate(self._sites):
            for k in range(i + 1, len(self._sites)):
                product = float(norms[i] * norms[k])
                if product > 0 and math.isfinite(product) and math.isfinite(self.gram[i, k]):
                    cosine = float(self.gram[i, k]) / product
                    found[f"cosine_pair/{one}/{self._sites[k]}"] = max(-1.0, min(1.0, cosine))
        return found


def gram(deltas: Float32) -> Float64:
    """The inner products of the sites' pseudo-gradients, a row each, with each other: an array (K, K)."""
    count, size = deltas.shape
    run = max(64, ALONE // count**2)
    whole = size - size % run
    runs = deltas[:, :whole].reshape(count, -1, run).swapaxes(0, 1)
    rest = deltas[:, whole:]
    found: Float64 = (runs @ runs.swapaxes(1, 2)).sum(axis=0, dtype=np.float64)
    return np.add(found, rest @ rest.T)
