"""Token weights, and the weighted mean of the sites' parameters in a fixed order."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def token_weights(tokens: Mapping[str, int]) -> dict[str, float]:
    """Each site's share of the tokens really trained, in the order of site names; sums to 1."""
    total = sum(tokens.values())
    return {site: tokens[site] / total for site in sorted(tokens)}


def weighted_mean(parameters: Float32, weights: Sequence[float], out: Float32, scratch: Float32) -> Float32:
    """sum_k w_k theta_k in float32, as theta_1 - sum_k w_k (theta_1 - theta_k), summed in the order given.

    The same number, since the weights sum to 1, but rounded once at the parameters' own scale; and exact, to
    the sign of a zero, for one site and for sites that agree, whatever their weights.

    Args:
        parameters: theta_k of every site, a row each.
        weights: the sites' shares, which sum to 1.
        out: where the mean goes, of a row's shape; none of `parameters`.
        scratch: an array to work in, of the parameters' shape.

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
