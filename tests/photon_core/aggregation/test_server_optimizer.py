"""Server optimizers against torch and the published forms, and their exact cases."""

from typing import get_args

import numpy as np
import pytest

from photon_core.aggregation.server_optimizer import OPTIMIZERS
from schemas.server import Server

SIZE, STEPS = 1000, 10


def steps(server: Server, targets: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
    """theta after every step, when the sites' mean is theta + targets[i]."""
    optimizer = OPTIMIZERS[server.optimizer]
    state = [np.zeros(SIZE, np.float32) for _ in optimizer.state]
    theta, found = start.copy(), []
    for target in targets:
        mean = theta + target
        theta = optimizer.step(theta, mean, theta - mean, state, server, np.empty_like(theta)).copy()
        found.append(theta)
    return found


@pytest.fixture
def start() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)


@pytest.fixture
def targets() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((STEPS, SIZE)).astype(np.float32) * np.float32(0.1)


@pytest.mark.parametrize("lr", [0.2, 0.5, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_nesterov_is_torch_sgd(lr: float, momentum: float, start: np.ndarray, targets: np.ndarray) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=momentum > 0)
    server = Server(optimizer="nesterov", lr=lr, momentum=momentum)
    for target, theta in zip(targets, steps(server, targets, start), strict=True):
        parameter.grad = torch.from_numpy(-target)
        sgd.step()
        assert np.allclose(theta, parameter.detach().numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("lr", "momentum"), [(0.2, 0.9), (0.7, 0.6), (1.0, 0.5)])
def test_fedmom_is_the_published_form(lr: float, momentum: float, start: np.ndarray, targets: np.ndarray) -> None:
    """Huo et al. 2020, by hand in float64: v starts at theta^0."""
    theta = v = start.astype(np.float64)
    server = Server(optimizer="fedmom", lr=lr, momentum=momentum)
    for target, found in zip(targets, steps(server, targets, start), strict=True):
        v_next = theta - lr * -target.astype(np.float64)
        theta, v = v_next + momentum * (v_next - v), v_next
        assert np.allclose(found, theta, rtol=0, atol=5e-6)


@pytest.mark.parametrize("lr", [0.1, 0.49, 0.5, 0.9, 1.5])
def test_fedavg_moves_the_given_share(lr: float, start: np.ndarray, targets: np.ndarray) -> None:
    (theta,) = steps(Server(lr=lr), targets[:1], start)
    assert np.allclose(theta, start + lr * targets[0], rtol=0, atol=5e-7)


@pytest.mark.parametrize("optimizer", ["fedavg", "nesterov", "fedmom"])
def test_lr_1_without_momentum_is_the_mean_bit_for_bit(optimizer: str) -> None:
    theta = np.float32([1.0, 3.0, 0.0, -1e8, 5.0])
    mean = np.float32([1e-8, -0.0, -0.0, 1.0, 5.0])
    chosen = OPTIMIZERS[optimizer]
    state = [np.zeros(5, np.float32) for _ in chosen.state]
    server = Server(optimizer=optimizer, lr=1)  # type: ignore[arg-type]
    found = chosen.step(theta, mean, theta - mean, state, server, np.empty_like(theta))
    assert found.tobytes() == mean.tobytes()


def test_the_file_and_the_registry_know_the_same_optimizers() -> None:
    assert set(get_args(Server.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)
