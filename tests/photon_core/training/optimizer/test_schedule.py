"""The learning rate at chosen steps, and against torch's own schedulers."""

import pytest

from photon_core.training.optimizer.schedule import learning_rate
from schemas.sections.local import Schedule

PEAK = 6e-4


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 6e-4 / 800),
        (399, 3e-4),
        (799, 6e-4),
        (800, 6e-4),
        (20_880, 3.3e-4),  # half of the cosine: the mean of both ends
        (40_960, 6e-5),
        (10**9, 6e-5),
    ],
)
def test_the_published_recipe(step: int, rate: float) -> None:
    schedule = Schedule(warmup_steps=800, alpha=0.1)
    assert learning_rate(step, PEAK, schedule, 40_960) == pytest.approx(rate, rel=1e-12)


def test_equals_torchs_cosine_annealing() -> None:
    import torch

    schedule = Schedule(alpha=1e-2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=6e-4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=6e-6)
    for step in range(51):
        assert learning_rate(step, PEAK, schedule, 50) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


def test_constant_and_odd_lengths() -> None:
    constant = Schedule(name="constant", warmup_steps=2)
    assert [learning_rate(step, PEAK, constant, 10) for step in (0, 1, 2, 99)] == [3e-4, 6e-4, 6e-4, 6e-4]
    short = Schedule(warmup_steps=20, alpha=0.5)
    assert learning_rate(19, PEAK, short, 10) == 6e-4
    assert learning_rate(20, PEAK, short, 10) == 3e-4
