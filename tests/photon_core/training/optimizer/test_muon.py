"""Muon against its definition by singular values in float64, and AdamW beside it against torch's own."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from photon_core.training.optimizer.muon import Muon, orthogonalise

ADAMW: dict[str, Any] = {"lr": 4e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}


def by_singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The published quintic, five times, on the singular values of the normalised matrix: no matrix iteration."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32), (1, 8)])
def test_newton_schulz_is_the_quintic_on_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(3).standard_normal(shape)
    found = orthogonalise(torch.from_numpy(matrix).float()[None])[0].numpy()
    assert np.allclose(found, by_singular_values(matrix), atol=2e-5)
    values = np.linalg.svd(found, compute_uv=False)
    assert values.max() < 1.25
    assert orthogonalise(torch.zeros(2, *shape)).abs().max() == 0


def reference(
    theta: NDArray[np.float64], gradients: list[NDArray[np.float64]], blocks: int, rates: list[float]
) -> NDArray[np.float64]:
    """Muon in float64, from its publication: mu 0.95, Nesterov, decoupled weight decay 0.1."""
    momentum, theta = np.zeros_like(theta), theta.copy()
    for gradient, lr in zip(gradients, rates, strict=True):
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = 0.05 * gradient + 0.95 * momentum
        parts = [by_singular_values(part) for part in np.split(direction, blocks)]
        rows, columns = parts[0].shape
        theta = theta * (1 - lr * 0.1) - lr * max(1, rows / columns) ** 0.5 * np.concatenate(parts)
    return theta


def test_twenty_steps_equal_the_reference() -> None:
    random = np.random.default_rng(7)
    shapes, blocks = [(48, 16), (16, 64), (64, 16)], [3, 1, 1]
    start = [random.standard_normal(shape) for shape in shapes]
    rates = [0.02 * (1 - step / 40) for step in range(20)]
    gradients = [[random.standard_normal(shape) for shape in shapes] for _ in range(20)]
    matrices = [nn.Parameter(torch.from_numpy(value).float()) for value in start]
    other, twin = (nn.Parameter(torch.ones(5)) for _ in range(2))
    muon = Muon(list(zip(matrices, blocks, strict=True)), [other], lr=0.02, momentum=0.95, adamw=ADAMW)
    adamw = torch.optim.AdamW([twin], **ADAMW)
    for step in range(20):
        muon.param_groups[0]["lr"] = rates[step]
        for parameter, gradient in zip(matrices, gradients[step], strict=True):
            parameter.grad = torch.from_numpy(gradient).float()
        other.grad = twin.grad = torch.linspace(-1, 1, 5) * (step + 1)
        muon.step()
        adamw.step()
        if step == 9:  # saved and loaded in between, as a round's end does
            saved = muon.state_dict()
            muon = Muon(list(zip(matrices, blocks, strict=True)), [other], lr=1.0, momentum=0.95, adamw=ADAMW)
            muon.load_state_dict(saved)
    for i, parameter in enumerate(matrices):
        expected = reference(start[i], [gradient[i] for gradient in gradients], blocks[i], rates)
        assert np.allclose(parameter.detach().numpy(), expected, atol=2e-5)
    assert torch.equal(other, twin)
