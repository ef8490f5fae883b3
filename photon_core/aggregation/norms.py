"""Norms and cosines of a round, gathered on the way; they also find what is not finite and whose it is."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import StepOverflow, UpdateRejected

Float32 = NDArray[np.float32]


class Norms:
    """Sums over the pieces of a model, in float64.

    Args:
        sites: names, in the order of the parameters given to `add`.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = sites
        self._delta = dict.fromkeys(sites, 0.0)  # |theta - theta_k|^2
        self._along = dict.fromkeys(sites, 0.0)  # <theta - theta_k, g>
        self._gradient = 0.0
        self._model = 0.0
        self._step = 0.0

    def add(
        self, tensor: str, theta: Float32, parameters: Sequence[Float32], g: Float32, scratch: Float32
    ) -> None:
        """One piece: theta, every site's theta_k, and g, the mean pseudo-gradient.

        Raises:
            UpdateRejected: a site's parameters are NaN or infinite, or so large that the mean is.
        """
        for site, theta_k in zip(self._sites, parameters, strict=True):
            np.subtract(theta, theta_k, out=scratch)
            square = _dot(scratch, scratch)
            if not math.isfinite(square):
                what = "values too large for float32's arithmetic" if np.isfinite(theta_k).all() else "NaN or Inf"
                raise UpdateRejected(site, f"tensor '{tensor}' holds {what}")
            self._delta[site] += square
            self._along[site] += _dot(scratch, g)
        self._gradient += (square := _dot(g, g))
        if not math.isfinite(square):
            largest = max(self._delta, key=self._delta.__getitem__)
            raise UpdateRejected(largest, f"tensor '{tensor}' holds values so large that the mean is not finite")

    def add_model(self, tensor: str, model: Float32, theta: Float32, scratch: Float32) -> None:
        """One piece of the new global model, and of theta. Raises StepOverflow when it is not finite."""
        np.subtract(model, theta, out=scratch)
        self._step += _dot(scratch, scratch)
        square = _dot(model, model)
        if not math.isfinite(square):
            raise StepOverflow(
                f"the server's step makes tensor '{tensor}' NaN or infinite, though the updates are finite; "
                "lower server.lr or server.momentum"
            )
        self._model += square

    def result(self) -> dict[str, float]:
        """pseudo_gradient_norm, model_norm, step_norm, delta_norm/<site>, cosine/<site>."""
        found = {"pseudo_gradient_norm": math.sqrt(self._gradient), "model_norm": math.sqrt(self._model)}
        found["step_norm"] = math.sqrt(self._step)
        for site in self._sites:
            delta = math.sqrt(self._delta[site])
            product = delta * found["pseudo_gradient_norm"]
            found[f"delta_norm/{site}"] = delta
            found[f"cosine/{site}"] = max(-1.0, min(1.0, self._along[site] / product)) if product else 0.0
        return found


def _dot(a: Float32, b: Float32) -> float:
    """The inner product; in float64 only where float32 overflows."""
    value = float(np.dot(a, b))
    return value if math.isfinite(value) else float(np.dot(a.astype(np.float64), b.astype(np.float64)))
