"""Robust means: against NumPy and SciPy's definitions, and one poisoned site of eight."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import trim_mean

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.means import bounds, median, sorting_network, trimmed_mean
from photon_core.errors import UpdateRejected
from photon_core.run.run import Run
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from schemas.manifests import UpdateManifest
from schemas.sections.server import Server

MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
SIZE = 500
POISON = 1e6


def parameters(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.standard_normal(SIZE).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 13, 16, 64])
def test_the_network_sorts(count: int) -> None:
    rows = np.stack(parameters(count))
    expected = np.sort(rows, axis=0)
    for low, high in sorting_network(count):
        assert low < high
        rows[[low, high]] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 33])
def test_against_numpy_and_scipy(count: int) -> None:
    given = parameters(count)
    before, out = [p.copy() for p in given], np.empty(SIZE, np.float32)
    assert np.allclose(median(np.stack(given), out), np.median(given, axis=0), rtol=0, atol=3e-7)
    for trim in (0.1, 0.25, 0.4):
        cut = min(int(np.ceil(trim * count)), (count - 1) // 2)
        expected = trim_mean(np.stack(given).astype(np.float64), (cut + 0.01) / count, axis=0)
        assert np.allclose(trimmed_mean(np.stack(given), trim, out), expected, rtol=0, atol=3e-7)
    assert all(np.array_equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_sites_that_agree_are_their_mean_bit_for_bit(count: int) -> None:
    theta = parameters(1)[0] * np.float32(1e30)
    out = np.empty(SIZE, np.float32)
    assert median(np.stack([theta] * count), out).tobytes() == theta.tobytes()
    assert trimmed_mean(np.stack([theta] * count), 0.2, out).tobytes() == theta.tobytes()


def test_bounds() -> None:
    assert bounds({"a": 1.0, "b": 2.0, "c": 40.0, "d": 0.0}, 2.0) == {"a": 1.0, "b": 1.0, "c": 0.075, "d": 1.0}


@pytest.fixture
def honest() -> np.ndarray:
    """The change that seven sites make, each nearly so."""
    return np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


def poisoned(tmp_path: Path, make_run: MakeRun, honest: np.ndarray, server: Server, claim: float = 1.0) -> float:
    """How far theta' is from where the honest sites go, in units of their step; the poisoned site turns back."""
    theta = {"w": np.zeros(SIZE, np.float32)}
    sites = {f"s{k}": ({"w": honest + np.float32(0.01) * p}, 100) for k, p in enumerate(parameters(7))}
    sites["s7"] = ({"w": np.float32(-POISON) * honest}, 100)
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    for site, update in updates.items():
        norm = float(np.linalg.norm(sites[site][0]["w"])) * (claim if site == "s7" else 1)
        updates[site] = update.model_copy(update={"metrics": {**update.metrics, "delta_norm": norm}})
    result = aggregate(run, 1, updates, server)
    with TensorReader(run.store, run.round_dir(1), result.model) as reader:
        found = next(reader.chunks("w", SIZE)).copy()
    return float(np.linalg.norm(found - honest) / np.linalg.norm(honest))


@pytest.mark.parametrize("mean", ["median", "trimmed", "norm_bounded"])
def test_one_poisoned_site_of_eight(tmp_path: Path, make_run: MakeRun, honest: np.ndarray, mean: Any) -> None:
    assert poisoned(tmp_path / "plain", make_run, honest, Server()) > POISON / 10
    limit = 0.4 if mean == "norm_bounded" else 0.02  # its share of twice the median norm: 3/8
    assert poisoned(tmp_path / "robust", make_run, honest, Server(mean=mean)) < limit


def test_a_site_that_claims_a_small_norm_is_rejected(
    tmp_path: Path, make_run: MakeRun, honest: np.ndarray
) -> None:
    with pytest.raises(UpdateRejected, match=r"claims a change of norm .*, but its change has norm") as rejected:
        poisoned(tmp_path, make_run, honest, Server(mean="norm_bounded"), claim=1e-6)
    assert rejected.value.site == "s7"


def test_norm_bounding_needs_the_norms(tmp_path: Path, make_run: MakeRun) -> None:
    theta = {"w": np.zeros(3, np.float32)}
    run, updates = make_run(Store(str(tmp_path)), theta, {"a": ({"w": np.ones(3, np.float32)}, 1)})
    with pytest.raises(UpdateRejected, match="no delta_norm"):
        aggregate(run, 1, updates, Server(mean="norm_bounded"))
