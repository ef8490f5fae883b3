"""The weighted mean: close to float64, exact where sites agree, blind to nothing but rounding."""

import numpy as np
import pytest

from photon_core.aggregation.means import token_weights, weighted_mean


def mean(parameters: list[np.ndarray], weights: list[float]) -> np.ndarray:
    rows = np.stack(parameters)
    return weighted_mean(rows, weights, np.empty_like(rows[0]), np.empty_like(rows))


def test_weights_are_shares_of_tokens_in_the_order_of_names() -> None:
    found = token_weights({"b": 300, "a": 100, "c": 600})
    assert list(found.items()) == [("a", 0.1), ("b", 0.3), ("c", 0.6)]


@pytest.mark.parametrize("sites", [1, 2, 3, 8, 64])
def test_close_to_the_mean_in_float64(sites: int) -> None:
    rng = np.random.default_rng(sites)
    base = rng.standard_normal(5000)
    parameters = [(base + 0.05 * rng.standard_normal(5000)).astype(np.float32) for _ in range(sites)]
    weights = list(token_weights({f"{k:02d}": int(rng.integers(1, 10**6)) for k in range(sites)}).values())
    expected = sum(w * p.astype(np.float64) for w, p in zip(weights, parameters, strict=True))
    error = np.abs(mean(parameters, weights) - expected)
    assert error.max() < 1.2e-7 * np.abs(expected).max()


@pytest.mark.parametrize("sites", [1, 3, 4, 7])
def test_sites_that_agree_are_their_mean_bit_for_bit(sites: int) -> None:
    rng = np.random.default_rng(0)
    theta = rng.integers(0, 0x7F000000, 10_000, dtype=np.uint32).view(np.float32)
    theta[::3] *= -1
    theta[:2] = [-0.0, 0.0]
    weights = list(token_weights({f"{k}": 17 * k + 1 for k in range(sites)}).values())
    assert mean([theta] * sites, weights).tobytes() == theta.tobytes()
