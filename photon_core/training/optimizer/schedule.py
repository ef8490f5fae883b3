"""The learning rate as one function of the global step: it knows of no rounds and restarts with none."""

import math

from schemas.sections.local import Schedule


def learning_rate(step: int, peak: float, schedule: Schedule, total_steps: int) -> float:
    """The learning rate of update number `step`.

    Linear warm-up from peak / warmup_steps to peak over the first warmup_steps updates, then a cosine that
    reaches alpha peak at total_steps and stays there (or peak for ever, if the schedule is constant).

    Args:
        step: updates made so far, over all rounds; 0 for the first.
        peak: the maximum.
        schedule: shape of the curve.
        total_steps: T of the cosine.
    """
    warmup = schedule.warmup(total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.name == "constant":
        return peak
    length = total_steps - warmup
    done = min(1.0, (step - warmup) / length) if length > 0 else 1.0
    share = schedule.alpha + (1 - schedule.alpha) * 0.5 * (1 + math.cos(math.pi * done))
    return peak * share
