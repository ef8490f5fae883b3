"""Norms and cosines of a round, from sums gathered on the way; they also find what is not finite."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import NotFinite, StepOverflow, UpdateRejected

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
SITES = 16  # more have no pairs: K^2 of them are too many to look at, and to reckon
ALONE = 1 << 17  # K^2 run: a product so small that BLAS starts no threads for it
ELEMENTS = 1 << 22  # parameters that are looked at: all of a small model's, evenly spread pieces of a large one's


class Norms:
    """Sums over the blocks of a model, in float64 and in one order.

    Args:
        sites: names, in the order of the sums given to `add`; none where single sites are not looked at.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = sites
        self.sums = np.zeros(2 * len(sites) + 3)

    def add(self, tensor: str, block: Sequence[float] | Float64) -> None:
        """One block of a tensor, or another part of the model.

        Args:
            block: |theta - theta_k|^2 of every site, <theta - theta_k, g> of every site, |g|^2,
                |theta' - theta|^2 and |theta'|^2; theta' is the new global model, g the mean pseudo-gradient.

        Raises:
            UpdateRejected: the sites' parameters are so large that the mean is not finite.
            NotFinite: the mean is not, and no site is looked at.
            StepOverflow: the new model is not.
        """
        self.sums += block
        if not math.isfinite(block[-3]) and not self._sites:
            raise NotFinite(f"the mean of tensor '{tensor}' holds NaN or Inf, and nobody can say whose")
        if not math.isfinite(block[-3]):
            largest = int(np.argmax(self.sums[: len(self._sites)]))
            raise UpdateRejected(
                self._sites[largest], f"tensor '{tensor}' holds values so large that the mean is not finite"
            )
        if not (math.isfinite(block[-2]) and math.isfinite(block[-1])):
            raise StepOverflow(
                f"the server's step makes tensor '{tensor}' NaN or infinite, though the updates are finite; "
                "lower server.lr or server.momentum"
            )

    def result(self) -> dict[str, float]:
        """pseudo_gradient_norm, model_norm, step_norm, delta_norm/<site>, cosine/<site>."""
        count = len(self._sites)
        sums = self.sums.tolist()
        gradient, step, model = (math.sqrt(total) for total in sums[-3:])
        found = {"pseudo_gradient_norm": gradient, "model_norm": model, "step_norm": step}
        for number, site in enumerate(self._sites):
            delta, along = math.sqrt(sums[number]), sums[count + number]
            product = delta * gradient
            found[f"delta_norm/{site}"] = delta
            found[f"cosine/{site}"] = max(-1.0, min(1.0, along / product)) if product else 0.0
        return found


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
