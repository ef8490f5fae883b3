"""Attention over one key layer of several nodes (WorldLM, Algorithm 1, lines 5 and 17).

Row 0 of the pool is the node's own layer x_0, the only query. The other rows are those of its parent and members,
or residuals. A row is a whole key layer: its tensors, flattened, in the order of their names. Each row gets one
weight:

    cosine   s_j = <x_0, x_j> / (|x_0| |x_j|)     (0 if a norm is 0)
    dot      s_j = <x_0, x_j> / sqrt(d)           d: elements of the layer
    mean     s_j = 0
    a_j = w_j exp((s_j - max s) / tau) / sum_i w_i exp((s_i - max s) / tau)
    y   = sum_j a_j x_j

The paper (Iacob et al. 2024, arXiv 2405.14446) names neither scale, normalisation nor temperature. All three are
choices of this project. Cosine with a temperature is the weighting of HeurFedAMP (Huang et al. 2021, arXiv
2007.03797).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.choice import PARENT, UNCHOSEN, settled
from photon_core.aggregation.sums import Sums
from schemas.bounds import LARGEST_NUMBER
from schemas.manifests import Attention
from schemas.sections.worldlm import WorldLM

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
LEAST_SPREAD = 1e-6  # minimum spread of cosines, so that equal rows have a temperature


def attend(
    rows: Sequence[str],
    sums: Sums,
    worldlm: WorldLM,
    shares: Sequence[float] | None = None,
    option: str = UNCHOSEN,
) -> Attention:
    """The weights of a pool, with names, scores and temperature.

    Args:
        rows: names of the rows, the own row first.
        sums: inner products of the rows; row 0 is the query.
        worldlm: settings of the node.
        shares: factors w_j; default: all 1.
        option: option of `temperature: auto` (aggregation/choice.py); not used otherwise.
    """
    worldlm = settled(worldlm, option)
    found = scores(sums, worldlm)
    tau = tau_of(found, worldlm)
    given = weights(found, tau, shares, worldlm.own_row)
    if option == PARENT:
        given = np.eye(1, len(rows), 1, np.float32)[0]
    return Attention(
        rows=list(rows),
        scores=found.tolist(),
        weights=given.tolist(),
        tau=tau,
        norm=math.sqrt(sums.squares[0]),
        distances=sums.distances().tolist(),
    )


def scores(sums: Sums, worldlm: WorldLM) -> Float64:
    """s_j of every row."""
    if worldlm.attention == "mean":
        return np.zeros_like(sums.squares)
    if worldlm.attention == "cosine":
        return sums.cosines()[0]
    return np.clip(sums.products[0] / math.sqrt(sums.elements), -LARGEST_NUMBER, LARGEST_NUMBER)


def tau_of(scores: Float64, worldlm: WorldLM) -> float:
    """The temperature of the formula. With cosine, the file's is in units of 1 minus the other rows' mean cosine.

    With mean it is always 1, because all scores are equal.
    """
    if worldlm.attention == "mean":
        return 1.0
    temperature = worldlm.temperature
    assert not isinstance(temperature, str), "an option of auto is a number"
    if worldlm.attention == "dot" or len(scores) < 2:
        return temperature
    mean = math.fsum(scores[1:]) / (len(scores) - 1)
    return temperature * max(1.0 - mean, LEAST_SPREAD)


def token_shares(tokens: Sequence[int]) -> list[float]:
    """w_j by tokens: of the own row, then of the members. The own row counts as an average member (a choice)."""
    return [sum(tokens) / len(tokens), *map(float, tokens)]


def weights(scores: Float64, tau: float, shares: Sequence[float] | None = None, own_row: bool = True) -> Float32:
    """a_j of every row, rounded to float32. A node's new key layer depends only on these and the rows.

    Args:
        scores: s_j of the pool.
        tau: temperature of the formula; 0 keeps the own row.
        shares: factors w_j, above 0; default: all 1.
        own_row: flag: the own row takes part. If it is the only row, it always does.
    """
    if len(scores) == 1 or tau == 0:
        return np.eye(1, len(scores), dtype=np.float32)[0]
    taking = slice(None) if own_row else slice(1, None)
    values = np.zeros(len(scores))
    values[taking] = np.exp((scores[taking] - scores[taking].max()) / tau)
    values *= np.ones(len(scores)) if shares is None else np.asarray(shares, np.float64)
    return (values / math.fsum(values)).astype(np.float32)


def entropy(weights: Sequence[float]) -> float:
    """Entropy of weights in nats: 0 if one row has all weight, the logarithm of their number if all are equal."""
    values = np.asarray([weight for weight in weights if weight > 0])
    return float(-(values * np.log(values)).sum()) + 0.0
