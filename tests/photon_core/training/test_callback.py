"""What accompanies a training: it measures what was trained, whatever Composer had to try before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from composer import Callback, Logger, State, Trainer
from typing_extensions import override

from photon_core.training import loop
from photon_core.training.train import train
from photon_core.training.trainer import make_trainer
from schemas.federation import Federation
from tests.photon_core.training.test_train import make_job, silent, theta_zero


class Starve(Callback):
    """The first step's first attempt runs out of memory between its forward and its backward pass."""

    def __init__(self) -> None:
        self.attempts = 0

    @override
    def before_backward(self, state: State, logger: Logger) -> None:
        self.attempts += 1
        if self.attempts == 1:
            raise RuntimeError("CUDA out of memory")


def test_an_attempt_that_ran_out_of_memory_is_not_counted(
    make_site: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_site(streams=("news", "code"))
    theta, starve = theta_zero(federation), Starve()
    expected = train(make_job(federation, theta, tmp_path), silent)

    def searching(*args: Any, **options: Any) -> Trainer:
        trainer = make_trainer(*args, **options)
        trainer.state.auto_microbatching = True  # Composer refuses it without a GPU only when it is requested
        trainer.state.callbacks.append(starve)
        return trainer

    monkeypatch.setattr(loop, "make_trainer", searching)
    found = train(make_job(federation, theta, tmp_path, attempt=2), silent)
    assert starve.attempts == 1 + 2 * 5, "retried with half the micro-batch"
    assert found.steps == expected.steps and found.tokens == expected.tokens
    for key in ("samples", "samples/news", "loss/news", "loss/code", "activation_norm", "gradient_norm"):
        assert found.metrics[key] == pytest.approx(expected.metrics[key], rel=1e-4), key
