"""Norms and cosines of a round, from sums over its blocks. The sums also reveal values that are not finite."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import NotFinite, StepOverflow, UpdateRejected

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
SITES = 16  # maximum number of sites with pairs: K^2 pairs of more sites are too many to read, and to compute
ALONE = 1 << 17  # K^2 run: a product this small is computed by BLAS without threads
ELEMENTS = 1 << 22  # parameters that are compared: all of a small model, evenly spread pieces of a large one


class Norms:
    """Sums over the blocks of a model, in float64 and in a fixed order.

    Args:
        sites: names of the sites, in the order of the sums for `add`; empty if single sites are not inspected.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = sites
        self.sums = np.zeros(2 * len(sites) + 3)

    def add(self, tensor: str, block: Sequence[float] | Float64) -> None:
        """Add the sums of one block of a tensor, or of another part of the model.

        Args:
            tensor: name of the tensor.
            block: |theta - theta_k|^2 of every site, <theta - theta_k, g> of every site, |g|^2,
                |theta' - theta|^2 and |theta'|^2; theta' is the new global model, g the mean pseudo-gradient.

        Raises:
            UpdateRejected: the sites' parameters are so large that the mean is not finite.
            NotFinite: the mean is not finite, and single sites are not inspected.
            StepOverflow: the new model is not finite.
        """
        self.sums += block
        if not math.isfinite(block[-3]) and not self._sites:
            raise NotFinite(f"the mean of tensor '{tensor}' holds NaN or Inf; single sites are not inspected")
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
        norms = {"pseudo_gradient_norm": gradient, "model_norm": model, "step_norm": step}
        for number, site in enumerate(self._sites):
            delta, along = math.sqrt(sums[number]), sums[count + number]
            product = delta * gradient
            norms[f"delta_norm/{site}"] = delta
            norms[f"cosine/{site}"] = max(-1.0, min(1.0, along / product)) if product else 0.0
        return norms


class Pairs:
    """Inner products of the sites' pseudo-gradients, with at most K^2 ELEMENTS operations for a model of any size.

    Args:
        sites: names of the sites, in the order of the rows of `gram`.
        elements: size of the whole model; it comes in pieces of similar size.

    Attributes:
        gram: sum of `gram` over the pieces that are compared; the caller adds to it.
    """

    def __init__(self, sites: Sequence[str], elements: int) -> None:
        self._sites = sites
        self.gram = np.zeros((len(sites), len(sites)))
        self._every = max(1, math.ceil(elements / ELEMENTS))
        self._piece = 0

    def turn(self) -> bool:
        """Whether the sites are compared on the next piece."""
        self._piece += 1
        return 1 < len(self._sites) <= SITES and (self._piece - 1) % self._every == 0

    def result(self) -> dict[str, float]:
        """cosine_pair/<site>/<site>, names in order; without pairs whose squares or product are 0 or overflow."""
        cosines = {}
        norms = np.sqrt(np.diag(self.gram))
        for i, one in enumerate(self._sites):
            for k in range(i + 1, len(self._sites)):
                product = float(norms[i] * norms[k])
                if product > 0 and math.isfinite(product) and math.isfinite(self.gram[i, k]):
                    cosine = float(self.gram[i, k]) / product
                    cosines[f"cosine_pair/{one}/{self._sites[k]}"] = max(-1.0, min(1.0, cosine))
        return cosines


def gram(deltas: Float32) -> Float64:
    """The inner products of the sites' pseudo-gradients with each other, as an array (K, K).

    Args:
        deltas: pseudo-gradients of the sites, a row each.
    """
    count, size = deltas.shape
    run = max(64, ALONE // count**2)
    whole = size - size % run
    runs = deltas[:, :whole].reshape(count, -1, run).swapaxes(0, 1)
    rest = deltas[:, whole:]
    products: Float64 = (runs @ runs.swapaxes(1, 2)).sum(axis=0, dtype=np.float64)
    return np.add(products, rest @ rest.T)
