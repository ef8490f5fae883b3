"""The server's learning rate as a pure function of the round: nothing is kept, so nothing is lost by a resume."""

import math

from schemas.sections.server import Server


def server_lr(t: int, server: Server, rounds: int) -> float:
    """The learning rate that makes the model of round t.

    Linear warm-up from lr / warmup_rounds to lr over the first warmup_rounds rounds; then lr (constant), or
    down from lr to alpha lr, which is reached at the round after total_rounds and kept from there on.

    Args:
        t: number of the round, from 1.
        server: its lr is the maximum.
        rounds: of the federation, where the schedule names no total_rounds.
    """
    schedule = server.schedule
    warmup, done = schedule.warmup_rounds, t - 1
    if done < warmup:
        return server.lr * t / warmup
    if schedule.name == "constant":
        return server.lr
    length = (schedule.total_rounds or rounds) - warmup
    share = min(1.0, (done - warmup) / length) if length > 0 else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * share)) if schedule.name == "cosine" else 1 - share
    return server.lr * (schedule.alpha + (1 - schedule.alpha) * fall)


def server_at(t: int, server: Server, rounds: int) -> Server:
    """The server's settings with the learning rate of round t."""
    return server.model_copy(update={"lr": server_lr(t, server, rounds)})
