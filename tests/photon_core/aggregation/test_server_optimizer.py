"""Server optimizers against torch and the published forms, and their exact cases."""

from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest

from photon_core.aggregation.server_optimizer import OPTIMIZERS, server_at, server_lr
from photon_core.errors import PhotonError
from schemas.sections.server import Server, ServerSchedule

SIZE, STEPS = 1000, 20


def steps(server: Server, targets: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
    """theta after every step, when the sites' mean is theta + targets[i]."""
    optimizer = OPTIMIZERS[server.optimizer]
    state = [np.full(SIZE, first(server), np.float32) for first in optimizer.state.values()]
    theta, found = start.copy(), []
    for t, target in enumerate(targets, 1):
        mean, now = theta + target, server_at(t, server, STEPS)
        theta = optimizer.step(theta, mean, theta - mean, state, now, np.empty_like(theta)).copy()
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
        assert np.allclose(theta, parameter.detach().numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("lr", "momentum"), [(0.2, 0.9), (0.7, 0.6), (1.0, 0.5)])
def test_fedmom_is_the_published_form(lr: float, momentum: float, start: np.ndarray, targets: np.ndarray) -> None:
    """Huo et al. 2020, written out in float64: v starts at theta^0."""
    theta = v = start.astype(np.float64)
    server = Server(optimizer="fedmom", lr=lr, momentum=momentum)
    for target, found in zip(targets, steps(server, targets, start), strict=True):
        v_next = theta - lr * -target.astype(np.float64)
        theta, v = v_next + momentum * (v_next - v), v_next
        assert np.allclose(found, theta, rtol=0, atol=5e-6)


@pytest.mark.parametrize("schedule", [{}, {"name": "cosine", "warmup_rounds": 4}])
@pytest.mark.parametrize(("optimizer", "momentum"), [("fedavg", 0.0), ("nesterov", 0.9)])
def test_under_a_schedule_it_is_torch_sgd_under_it(
    optimizer: Any, momentum: float, schedule: dict[str, Any], start: np.ndarray, targets: np.ndarray
) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    sgd = torch.optim.SGD([parameter], lr=1.0, momentum=momentum, nesterov=momentum > 0)
    server = Server(optimizer=optimizer, lr=0.7, momentum=momentum, schedule=ServerSchedule(**schedule))
    for t, (target, theta) in enumerate(zip(targets, steps(server, targets, start), strict=True)):
        warm = min(1.0, (t + 1) / 4)
        fall = 0.1 + 0.9 * (1 + np.cos(np.pi * max(0, t - 4) / 16)) / 2
        sgd.param_groups[0]["lr"] = 0.7 * (warm * fall if schedule else 1.0)
        parameter.grad = torch.from_numpy(-target)
        sgd.step()
        assert np.allclose(theta, parameter.detach().numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("lr", "tau"), [(0.01, 1e-3), (0.3, 0.1)])
def test_fedadagrad_without_momentum_is_torch_adagrad(
    lr: float, tau: float, start: np.ndarray, targets: np.ndarray
) -> None:
    """torch adds eps to the root as tau is, and its sum may start anywhere."""
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adagrad = torch.optim.Adagrad([parameter], lr=lr, eps=tau, initial_accumulator_value=tau**2)
    server = Server(optimizer="fedadagrad", lr=lr, tau=tau, betas=(0.0, 0.99))
    for target, theta in zip(targets, steps(server, targets, start), strict=True):
        parameter.grad = torch.from_numpy(-target)
        adagrad.step()
        assert np.allclose(theta, parameter.detach().numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("lr", "tau", "betas"), [(0.01, 1e-3, (0.9, 0.99)), (0.1, 0.05, (0.5, 0.9))])
def test_fedadam_is_torch_adam_without_its_correction_of_bias(
    lr: float, tau: float, betas: tuple[float, float], start: np.ndarray, targets: np.ndarray
) -> None:
    """torch divides m by 1 - b1^t and v by 1 - b2^t: lr and eps that undo it, and v from tau^2."""
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adam = torch.optim.Adam([parameter], lr=lr, betas=betas)
    zeros = torch.zeros(SIZE)
    second = torch.full((SIZE,), tau**2)
    adam.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": second}
    server = Server(optimizer="fedadam", lr=lr, tau=tau, betas=betas)
    for t, (target, theta) in enumerate(zip(targets, steps(server, targets, start), strict=True), 1):
        root = (1 - betas[1] ** t) ** 0.5
        adam.param_groups[0].update(lr=lr * (1 - betas[0] ** t) / root, eps=tau / root)
        parameter.grad = torch.from_numpy(-target)
        adam.step()
        assert np.allclose(theta, parameter.detach().numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("optimizer", ["fedadagrad", "fedyogi", "fedadam"])
@pytest.mark.parametrize(("lr", "tau", "betas"), [(0.01, 1e-3, (0.9, 0.99)), (0.1, 0.05, (0.0, 0.9))])
def test_the_adaptive_ones_are_the_published_forms(
    optimizer: Any, lr: float, tau: float, betas: tuple[float, float], start: np.ndarray, targets: np.ndarray
) -> None:
    """Reddi et al. 2020, Algorithm 2, written out in float64: Delta is the mean of theta_k - theta."""
    x, m, v = start.astype(np.float64), np.zeros(SIZE), np.full(SIZE, tau**2)
    server = Server(optimizer=optimizer, lr=lr, tau=tau, betas=betas)
    for target, found in zip(targets, steps(server, targets, start), strict=True):
        delta = target.astype(np.float64)
        m = betas[0] * m + (1 - betas[0]) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedyogi": v - (1 - betas[1]) * delta**2 * np.sign(v - delta**2),
            "fedadam": betas[1] * v + (1 - betas[1]) * delta**2,
        }[optimizer]
        x = x + lr * m / (np.sqrt(v) + tau)
        assert np.allclose(found, x, rtol=0, atol=5e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_one_moves_towards_the_sites(optimizer: Any) -> None:
    theta, mean = np.zeros(4, np.float32), np.float32([1, -1, 0.5, 2])
    chosen = OPTIMIZERS[optimizer]
    server = Server(optimizer=optimizer, lr=0.1)
    state = [np.full(4, first(server), np.float32) for first in chosen.state.values()]
    found = chosen.step(theta, mean, theta - mean, state, server, np.empty(4, np.float32))
    assert (np.sign(found) == np.sign(mean)).all()


def test_a_second_moment_that_overflows_is_said() -> None:
    huge = np.float32([1e30])
    server = Server(optimizer="fedadam", lr=0.1)
    state = [np.zeros(1, np.float32), np.zeros(1, np.float32)]
    with np.errstate(over="ignore"), pytest.raises(PhotonError, match="second moment overflows"):
        OPTIMIZERS["fedadam"].step(huge * 0, -huge, huge, state, server, np.empty(1, np.float32))


def test_the_schedules_over_the_rounds() -> None:
    def curve(**schedule: Any) -> list[float]:
        return [server_lr(t, Server(lr=2.0, schedule=ServerSchedule(**schedule)), 8) for t in range(1, 11)]

    assert curve() == [2.0] * 10
    assert curve(warmup_rounds=4) == [0.5, 1.0, 1.5, 2.0, *[2.0] * 6]
    assert curve(name="linear", alpha=0.0, warmup_rounds=4) == [0.5, 1, 1.5, 2, 2, 1.5, 1, 0.5, 0, 0]
    assert curve(name="linear", alpha=0.5, total_rounds=4) == [2, 1.75, 1.5, 1.25, *[1.0] * 6]
    cosine = curve(name="cosine", alpha=0.2)
    assert cosine[0] == 2.0
    assert cosine[4] == pytest.approx(0.4 + 1.6 / 2)
    assert cosine[8:] == pytest.approx([0.4, 0.4])
    assert all(before > after for before, after in pairwise(cosine[:9]))


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
