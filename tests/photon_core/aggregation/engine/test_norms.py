"""Cosines between each two sites' updates, against NumPy on the whole vectors."""

import numpy as np
import pytest

from photon_core.aggregation.engine import norms
from photon_core.aggregation.engine.norms import Pairs, gram


def add(found: Pairs, deltas: np.ndarray) -> None:
    """A piece, as the pass over the updates takes it."""
    if found.turn():
        found.gram += gram(deltas)


def test_all_of_a_small_model():
    random = np.random.default_rng(1)
    theta = random.standard_normal(1000, np.float32)
    sites = [theta + random.standard_normal(1000, np.float32) * 0.1 for _ in range(3)]
    found = Pairs("abc", 1000)
    for start in range(0, 1000, 300):
        piece = slice(start, start + 300)
        add(found, np.stack([theta[piece] - site[piece] for site in sites]))
    deltas = [(theta - site).astype(np.float64) for site in sites]
    expected = {
        f"cosine_pair/{x}/{y}": deltas[i] @ deltas[k] / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[k])
        for i, k, x, y in ((0, 1, "a", "b"), (0, 2, "a", "c"), (1, 2, "b", "c"))
    }
    assert found.result() == pytest.approx(expected, abs=1e-6)


def test_of_a_large_model_only_so_many_parameters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norms, "ELEMENTS", 40)
    found = Pairs("ab", 100)  # ten pieces of ten, of which the first, fourth, seventh and tenth are looked at
    for number in range(10):
        same = np.full(10, 1.0, np.float32)
        add(found, np.stack([same, same if number % 3 == 0 else -same]))
    assert found.result() == {"cosine_pair/a/b": pytest.approx(1.0)}


def test_what_has_no_cosine_is_left_out():
    theta = np.zeros(4, np.float32)
    one = Pairs("a", 4)
    add(one, np.stack([theta + 1]))
    still, huge = Pairs("ab", 4), Pairs("ab", 4)
    add(still, np.stack([theta, theta + 1]))
    with np.errstate(over="ignore"):
        add(huge, np.stack([theta + np.float32(3e38), theta + 1]))
    many = Pairs([str(i) for i in range(17)], 4)
    add(many, np.stack([theta + 1] * 17))
    assert one.result() == still.result() == huge.result() == many.result() == {}
