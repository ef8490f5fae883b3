"""The sites' weights: tokens, alike, FedNova against the paper's formula in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.aggregation.rules import model_rule
from photon_core.aggregation.weights import Shares, fednova_factor
from photon_core.model.shapes import moment_shapes
from schemas.manifests import UpdateManifest
from schemas.sections.server import Server
from tests.photon_core.aggregation import test_guard as rounds

SIZE = 400
STEPS = {"a": 10, "b": 40, "c": 25}


def updates(steps: dict[str, int] = STEPS) -> dict[str, UpdateManifest]:
    common: dict[str, Any] = {
        "run": "r", "round": 1, "attempt": 1, "base_sha256": "", "codec": "float32", "files": [],
        "data_sha256": "", "versions": {}, "previous_sha256": "",
    }  # fmt: skip
    return {
        site: UpdateManifest(site=site, tokens=100 * count, steps=count, metrics={"train_loss": 1.0}, **common)
        for site, count in steps.items()
    }


def combined(server: Server, theta: np.ndarray, parameters: list[np.ndarray], **given: Any) -> np.ndarray:
    rows = np.stack([theta, *parameters])
    rule = model_rule(server, Shares(server, updates(**given)))
    return rule(rows, np.empty_like(theta), np.empty_like(rows))


@pytest.fixture
def theta() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


@pytest.fixture
def parameters(theta: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [theta + np.float32(0.1) * rng.standard_normal(SIZE).astype(np.float32) for _ in STEPS]


def test_weights() -> None:
    assert Shares(Server(), updates()).weights == {"a": 10 / 75, "b": 40 / 75, "c": 25 / 75}
    for server in (Server(weights="uniform"), Server(mean="median"), Server(mean="trimmed")):
        assert Shares(server, updates()).weights == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def test_uniform_is_the_plain_mean(theta: np.ndarray, parameters: list[np.ndarray]) -> None:
    found = combined(Server(weights="uniform"), theta, parameters)
    assert np.allclose(found, np.mean(parameters, axis=0, dtype=np.float64), rtol=0, atol=3e-7)


def test_fednova_is_the_papers_formula(theta: np.ndarray, parameters: list[np.ndarray]) -> None:
    """Wang et al. 2020, equation 5 with p_i = 1/K: x - tau_eff sum p_i d_i, d_i the change over its steps."""
    x = theta.astype(np.float64)
    steps = list(STEPS.values())
    d = [(x - p) / a for p, a in zip(parameters, steps, strict=True)]
    expected = x - np.mean(steps) * np.mean(d, axis=0)
    found = combined(Server(weights="fednova"), theta, parameters)
    assert np.allclose(found, expected, rtol=0, atol=1e-6)
    weights, factor = fednova_factor(STEPS)
    assert sum(weights.values()) == pytest.approx(1)
    assert factor == pytest.approx(25 * (1 / 10 + 1 / 40 + 1 / 25) / 3)


def test_fednova_shares_are_the_parameters_alone() -> None:
    """With 1 and 100 steps: a mean of moments or metrics by 1 / steps would be the first site's alone."""
    found = Shares(Server(weights="fednova"), updates({"a": 1, "b": 100}))
    assert found.weights == {"a": 0.5, "b": 0.5}
    assert found.relative == pytest.approx({"a": 100 / 101, "b": 1 / 101})
    assert found.shares == pytest.approx({"a": 50.5 / 2, "b": 0.505 / 2})


def test_under_fednova_moments_metrics_and_the_manifest_have_plain_means(tmp_path: Path) -> None:
    run, setting = rounds.start(tmp_path), rounds.federation("average", weights="fednova")
    shapes, file = moment_shapes(setting.model, "adamw"), tmp_path / "moments.safetensors"
    for site, steps in (("a", 1), ("b", 4), ("c", 5)):
        numbers = {name: steps**2 if name.startswith("exp_avg_sq.") else steps for name in shapes}
        save_file({name: np.full(shape, numbers[name], np.float32) for name, shape in shapes.items()}, file)
        rounds.train(run, 1, site, lambda c, n=steps: 0 * c + np.float32(n), [file], steps, gradient_norm=steps)
    manifest = rounds.aggregate_and_commit(run, setting, 1)
    assert {ref.weight for ref in manifest.updates.values()} == {1 / 3}
    assert manifest.metrics["gradient_norm"] == pytest.approx(10 / 3)
    moments = load_file(tmp_path / run.round_dir(1) / manifest.moments[0].path)
    assert all(np.allclose(value, 10 / 3) for value in moments.values())
    step = rounds.model(run, 1, manifest.model) - 5
    assert np.allclose(step, 10 / 3), "each change over its steps is 1, times the mean of the steps"


def test_fednova_removes_the_bias_of_uneven_work() -> None:
    """Sites whose gradients cancel: the one with more steps pulls a token-weighted mean to its side."""
    theta, pull = np.zeros(4, np.float32), np.float32([1, -1, 2, 0.5])
    apart = [theta + np.float32(0.01 * count * sign) * pull for count, sign in ((10, 1), (40, -1))]
    steps = {"a": 10, "b": 40}
    assert np.abs(combined(Server(weights="fednova"), theta, apart, steps=steps)).max() < 1e-6
    assert np.abs(combined(Server(), theta, apart, steps=steps)).max() > 0.2


def test_fednova_of_even_work_is_the_uniform_mean(theta: np.ndarray, parameters: list[np.ndarray]) -> None:
    even = {"a": 8, "b": 8, "c": 8}
    nova = combined(Server(weights="fednova"), theta, parameters, steps=even)
    assert np.allclose(nova, combined(Server(weights="uniform"), theta, parameters, steps=even), rtol=0, atol=2e-7)
