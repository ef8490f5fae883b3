"""The learning rate as a function of the global step. It does not depend on rounds, and never restarts."""

import math

from schemas.sections.local import Schedule


def learning_rate(step: int, peak: float, schedule: Schedule, total_steps: int) -> float:
    """The learning rate of the local step after `step` earlier ones.

    The rate warms up linearly from peak / warmup_steps to peak over the first warmup_steps steps. Then it follows
    a cosine that reaches alpha peak at total_steps and stays there, or remains at peak if the schedule is
    constant.

    Args:
        step: number of earlier steps, over all rounds.
        peak: maximum rate.
        schedule: schedule of the federation file.
        total_steps: length T of the cosine.
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
