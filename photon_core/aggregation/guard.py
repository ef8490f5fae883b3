"""Whether a round has gone wrong at the server: its norms, or its loss, are out of line with the rounds before."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from schemas.server import Guard

RUNNING_ROUNDS = 5  # whose median is the running value
WATCHED = {"step_norm": "the server's step", "model_norm": "the model's norm"}


def running(past: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Median of a metric over the last rounds that have it; None before the first."""
    values = [metrics[name] for metrics in past if name in metrics][-RUNNING_ROUNDS:]
    return median(values) if values else None


def norm_trouble(norms: Mapping[str, float], past: Sequence[Mapping[str, float]], guard: Guard) -> str:
    """What is wrong with a new model's norms, or nothing.

    Args:
        norms: the candidate's.
        past: metrics of the committed rounds, oldest first.
        guard: the settings.
    """
    for name, words in WATCHED.items():
        usual = running(past, name)
        if guard.norm_factor and usual and norms[name] > guard.norm_factor * usual:
            return f"{words} is {norms[name]:.4g}, {norms[name] / usual:.3g} times its running value {usual:.4g}"
    return ""


def loss_trouble(loss: float | None, past: Sequence[Mapping[str, float]], guard: Guard) -> str:
    """What is wrong with a new model's validation loss (nats, mean over the sites), or nothing."""
    usual = running(past, "loss")
    if guard.loss_jump is None or loss is None or usual is None:
        return ""
    if not math.isfinite(loss) or loss > usual + guard.loss_jump:
        return f"the validation loss is {loss:.4g}, over {guard.loss_jump:g} above its running value {usual:.4g}"
    return ""
