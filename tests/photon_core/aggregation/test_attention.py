"""Attention over key layers: golden weights and means, and properties of every pool."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photon_core.aggregation.attention import (
    LEAST_SPREAD,
    attend,
    entropy,
    scores,
    tau_of,
    token_shares,
    weights,
)
from photon_core.aggregation.means import weighted_mean
from photon_core.aggregation.sums import Sums, TensorSums, block_sums
from schemas.sections.worldlm import WorldLM

Rows = np.ndarray[Any, np.dtype[np.float32]]
Kind = Literal["cosine", "dot", "mean"]
THREE = np.array([(1, 0), (0, 1), (-1, 0)], np.float32)
fast = settings(max_examples=60, deadline=None, derandomize=True, database=None)
cosines = st.lists(st.floats(-1, 1), min_size=1, max_size=7).map(lambda others: np.array([1.0, *others]))


def sums(rows: Rows) -> Sums:
    tensor = TensorSums()
    tensor.add(block_sums(list(rows)))
    return Sums.of([tensor.result()], rows.shape[1])


def mean(rows: Rows, shares: list[float]) -> Rows:
    """y, as a pass computes it."""
    return weighted_mean(rows, shares, np.empty_like(rows[0]), np.empty_like(rows))


@pytest.mark.parametrize(
    ("kind", "tau", "shares", "own_row", "a", "y"),
    [
        ("dot", 1, None, True, [0.575975, 0.283995, 0.140029], [0.435946, 0.283995]),
        ("cosine", 1, None, True, [0.665241, 0.244728, 0.090031], [0.575210, 0.244728]),
        ("cosine", 0.5, None, True, [0.866813, 0.117310, 0.015876], [0.850937, 0.117310]),
        ("cosine", 0.1, None, True, [0.999955, 0.000045, 0.000000], [0.999955, 0.000045]),
        ("cosine", 0.5, [2, 1, 1], True, [0.928656, 0.062840, 0.008504], [0.920151, 0.062840]),
        ("cosine", 1, None, False, [0, 0.731059, 0.268941], [-0.268941, 0.731059]),
        ("cosine", 0, None, True, [1, 0, 0], [1, 0]),
        ("mean", 0.1, None, True, [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3]),
        ("mean", 7, None, True, [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3]),
    ],
)
def test_three_rows(
    kind: Kind, tau: float, shares: list[float] | None, own_row: bool, a: list[float], y: list[float]
) -> None:
    """Golden values, computed independently of this code, to six digits."""
    found = weights(scores(sums(THREE), WorldLM(attention=kind)), tau, shares, own_row)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(a, abs=6e-7)
    assert mean(THREE, found.tolist()).tolist() == pytest.approx(y, abs=6e-7)


@pytest.mark.parametrize(
    ("drift", "own"),
    [
        (0.05, [0.250, 0.255, 0.274]),
        (0.2, [0.257, 0.329, 0.695]),
        (0.5, [0.289, 0.711, 1.000]),
        (1.0, [0.355, 0.980, 1.000]),
    ],
)
def test_drift(drift: float, own: list[float]) -> None:
    """Four rows from one start, each with its own change of this share of its size: the own row's weight."""
    rows = np.eye(5, dtype=np.float32)[1:] * np.float32(drift)
    rows[:, 0] = 1
    found = scores(sums(rows), WorldLM())
    assert found[1:] == pytest.approx(1 / (1 + drift**2))
    assert [weights(found, tau)[0] for tau in (1, 0.1, 0.02)] == pytest.approx(own, abs=6e-4)


@pytest.mark.parametrize(
    ("noise", "cosine"), [(0.5, 0.142), (1.0, 0.027), (3.0, 0.001), (10.0, 0.000)], ids=["0.5", "1", "3", "10"]
)
def test_noise(noise: float, cosine: float) -> None:
    """The third row's weight, with `noise` standard deviations of noise: it changes only a normalised score."""
    rng = np.random.default_rng(0)
    x, n = (0.02 * rng.standard_normal((2, 1 << 12))).astype(np.float32)
    rows = np.stack([x, x, x + np.float32(noise) * n])
    assert weights(scores(sums(rows), WorldLM(attention="dot")), 1.0)[2] == pytest.approx(1 / 3, abs=1e-3)
    assert weights(scores(sums(rows), WorldLM()), 0.1)[2] == pytest.approx(cosine, abs=0.01)


@given(cosines, st.floats(1e-3, 1e3), st.booleans())
@fast
def test_weights_sum_to_1(found: Any, tau: float, own_row: bool) -> None:
    given = weights(found, tau, own_row=own_row)
    assert abs(float(given.sum(dtype=np.float64)) - 1) < 1e-6
    assert (given >= 0).all() and (own_row or given[0] == 0)


@given(cosines, st.floats(1e-3, 1e3), st.floats(1, 1e3))
@fast
def test_a_larger_temperature_never_raises_the_own_weight(found: Any, tau: float, factor: float) -> None:
    assert weights(found, tau * factor)[0] <= weights(found, tau)[0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from(["cosine", "dot", "mean"]), st.booleans())
@fast
def test_the_mean_is_between_the_rows(seed: int, count: int, kind: Kind, own_row: bool) -> None:
    rows = np.random.default_rng(seed).standard_normal((count, 50)).astype(np.float32)
    rows[0] *= 10
    record = attend("abcdef"[:count], sums(rows), WorldLM(attention=kind, own_row=own_row))
    y = mean(rows, record.weights)
    room = count * np.spacing(np.abs(rows).max())
    taking = rows if own_row or count == 1 else rows[1:]
    assert (taking.min(axis=0) - room <= y).all() and (y <= taking.max(axis=0) + room).all()


def test_equal_rows_stay_as_they_are_in_every_bit() -> None:
    row = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    rows = np.stack([row] * 4)
    for kind in ("cosine", "dot", "mean"):
        record = attend("abcd", sums(rows), WorldLM(attention=kind))
        assert mean(rows, record.weights).tobytes() == row.tobytes()


def test_softness_from_the_own_row_to_the_mean() -> None:
    found = scores(sums(THREE), WorldLM())
    assert weights(found, 0).tolist() == [1, 0, 0]
    assert weights(found, 1e12).tolist() == pytest.approx([1 / 3] * 3)


def test_a_row_of_zeros_has_score_0() -> None:
    rows = np.array([(1, 0), (0, 0), (0, 2)], np.float32)
    assert scores(sums(rows), WorldLM()).tolist() == [1, 0, 0]
    assert scores(sums(rows[[1, 0, 2]]), WorldLM()).tolist() == [0, 0, 0]
    record = attend("abc", sums(rows[[1, 0, 2]]), WorldLM())
    assert record.weights == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("own_row", [True, False])
def test_one_row_is_its_own_mean(own_row: bool) -> None:
    record = attend(["own"], sums(THREE[:1]), WorldLM(own_row=own_row))
    assert (record.rows, record.weights, record.scores) == (["own"], [1.0], [1.0])


def test_the_own_row_weighs_as_an_average_member() -> None:
    assert token_shares([100, 300, 200]) == [200, 100, 300, 200]
    assert weights(np.zeros(4), 1.0, token_shares([100, 300, 200])).tolist() == pytest.approx(
        [0.25, 0.125, 0.375, 0.25]
    )


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_the_files_temperature_means_the_same_at_every_drift(spread: float) -> None:
    """At 1 the own row weighs e times an average other one."""
    found = np.array([1.0, 1 - spread, 1 - spread])
    assert tau_of(found, WorldLM()) == pytest.approx(spread)
    assert tau_of(found, WorldLM(temperature=0.5)) == pytest.approx(spread / 2)
    a = weights(found, tau_of(found, WorldLM()))
    assert a[0] / a[1] == pytest.approx(np.e)


def test_the_files_temperature_of_other_rows_by_their_mean() -> None:
    assert tau_of(np.array([1.0, 0.5, 0.1]), WorldLM()) == pytest.approx(0.7)
    assert tau_of(np.array([1.0, 1.0, 1.0]), WorldLM(temperature=3)) == 3 * LEAST_SPREAD
    assert tau_of(np.array([1.0, 0.5]), WorldLM(attention="dot", temperature=3)) == 3


@pytest.mark.parametrize("temperature", [0, 0.1, 1e9])
def test_the_plain_mean_has_no_temperature(temperature: float) -> None:
    record = attend(["own", "a", "b"], sums(THREE), WorldLM(attention="mean", temperature=temperature))
    assert (record.weights, record.tau) == (pytest.approx([1 / 3] * 3), 1)


def test_what_is_recorded() -> None:
    found = attend(["own", "a", "b"], sums(THREE), WorldLM(temperature=0.5), [2, 1, 1])
    assert found.rows == ["own", "a", "b"] and found.scores == [1, 0, -1]
    assert found.tau == pytest.approx(0.75)
    assert found.weights == weights(np.array(found.scores), found.tau, [2, 1, 1]).tolist()


def test_entropy() -> None:
    assert entropy([1, 0, 0]) == 0
    assert entropy([0.25] * 4) == pytest.approx(np.log(4))
