"""Token weights, and the weighted mean of the sites' parameters in a fixed order."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def token_weights(tokens: Mapping[str, int]) -> dict[str, float]:
    """Each site's share of the tokens really trained, in the order of site names; sums to 1."""
    total = sum(tokens.values())
    return {site: tokens[site] / total for site in sorted(tokens)}


def weighted_mean(
    parameters: Sequence[Float32], weights: Sequence[float], out: Float32, scratch: Float32
) -> Float32:
    """sum_k w_k theta_k in float32, as theta_1 - sum_k w_k (theta_1 - theta_k), summed in the order given.

    The same number, since the weights sum to 1, but rounded once at the parameters' own scale; and exact, to
    the sign of a zero, for one site and for sites that agree, whatever their weights.

    Args:
        parameters: theta_k of every site, same shapes.
        weights: the sites' shares, which sum to 1.
        out: where the mean goes; none of `parameters`.
        scratch: an array to work in, of the same shape.

    Returns:
        `out`.
    """
    first = parameters[0]
    if len(parameters) == 1:
        np.copyto(out, first)
        return out
    out.fill(0)
    for theta_k, weight in zip(parameters[1:], weights[1:], strict=True):
        np.subtract(first, theta_k, out=scratch)
        np.multiply(scratch, np.float32(weight), out=scratch)
        np.add(out, scratch, out=out)
    return np.subtract(first, out, out=out)
