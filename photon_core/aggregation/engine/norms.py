"""Norms and cosines of a round, from sums gathered on the way; they also find what is not finite."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import StepOverflow, UpdateRejected

Float64 = NDArray[np.float64]


class Norms:
    """Sums over the blocks of a model, in float64 and in one order.

    Args:
        sites: names, in the order of the sums given to `add`.
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
            StepOverflow: the new model is not.
        """
        self.sums += block
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
