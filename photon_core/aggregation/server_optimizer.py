"""ServerOpt of Algorithm 1: how the global model moves, given the mean of the sites' parameters.

g = theta - mean is the weighted mean of the pseudo-gradients theta - theta_k, because the weights sum to 1.
Every optimizer works element by element, so it may be given any piece of the parameters. To add one, write its
step, name its state tensors and what they start at in OPTIMIZERS, and its name in schemas.sections.server.Server.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import StepOverflow
from schemas.sections.server import Server

Float32 = NDArray[np.float32]
Step = Callable[[Float32, Float32, Float32, Sequence[Float32], Server, Float32], Float32]


@dataclass(frozen=True)
class ServerOptimizer:
    """One server optimizer.

    Args:
        state: names of its state tensors, which have theta's shapes, and the number that fills each at first.
        step: (theta, mean, g, state, server, out) -> out: the new theta. `state` is changed in place; `out`
            is none of the others.
        velocity: whether the state moves the model on in later rounds by its own size, so that `lower` takes of it
            what the guard takes of the step.
    """

    state: Mapping[str, Callable[[Server], float]]
    step: Step
    velocity: bool = False

    def lower(self, state: Sequence[Float32], factor: float) -> None:
        """Multiply the state, after a step whose learning rate the guard has multiplied by `factor`, by the same.

        A g is in the step of `nesterov` as lr (1 + mu) g, and comes again in the rounds that follow as lr mu^2 g,
        lr mu^3 g, ..., at the whole lr: what was cut from a step that blew the model up would be gone after all,
        mu^2 / (1 - mu) g in sum (8.1 g with a momentum of 0.9). So what is kept is the velocity of the step that
        was really made; all of m, not the round's own g alone, because a blow-up may have built up in it. The
        adaptive ones divide m by the root of v, which has taken g in, too: however large g was, their next steps
        are of about lr, and nothing is to be lowered.
        """
        if self.velocity and factor != 1:
            for values in state:
                np.multiply(values, np.float32(factor), out=values)


def fedavg(
    theta: Float32, mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """theta <- theta - lr g, written as the two-sided interpolation from theta to the mean.

    With lr 1 the result is the mean bit for bit, which theta - g is not.
    """
    if server.lr == 1:
        np.copyto(out, mean)
        return out
    if server.lr >= 0.5:
        np.multiply(g, np.float32(1 - server.lr), out=out)
        return np.add(mean, out, out=out)
    np.multiply(g, np.float32(server.lr), out=out)
    return np.subtract(theta, out, out=out)


def nesterov(
    theta: Float32, mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """m <- mu m + g; theta <- theta - lr (g + mu m): torch.optim.SGD with nesterov=True, m starting at 0.

    FedMom (Huo et al. 2020) is the same map. It is published as v' = theta - lr g;
    theta <- v' + mu (v' - v); v <- v', from v = theta^0. Put v - theta = lr mu m: then v' - v =
    -lr (g + mu m) = -lr m', so theta <- v' - lr mu m', and v' - theta keeps the form; m = 0 at the start. That
    holds for one lr; where a schedule changes it, this form is what both names mean. Where the guard has lowered
    it, m is lowered, too (ServerOptimizer.lower).
    """
    (momentum,) = state
    np.multiply(momentum, np.float32(server.momentum), out=momentum)
    np.add(momentum, g, out=momentum)
    fedavg(theta, mean, g, (), server, out)
    return np.subtract(out, momentum * np.float32(server.lr * server.momentum), out=out)


def fedadagrad(
    theta: Float32, mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """v <- v + g^2, in the step of `_adaptive`."""
    np.multiply(g, g, out=out)
    np.add(state[1], out, out=state[1])
    return _adaptive(theta, g, state, server, out)


def fedyogi(
    theta: Float32, mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """v <- v - (1 - b2) g^2 sign(v - g^2), in the step of `_adaptive`."""
    v = state[1]
    np.multiply(g, g, out=out)
    sign = np.subtract(v, out)
    np.sign(sign, out=sign)
    np.multiply(out, np.float32(1 - server.betas[1]), out=out)
    np.multiply(out, sign, out=out)
    np.subtract(v, out, out=v)
    return _adaptive(theta, g, state, server, out)


def fedadam(
    theta: Float32, mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """v <- b2 v + (1 - b2) g^2, in the step of `_adaptive`."""
    v = state[1]
    np.multiply(g, g, out=out)
    np.multiply(out, np.float32(1 - server.betas[1]), out=out)
    np.multiply(v, np.float32(server.betas[1]), out=v)
    np.add(v, out, out=v)
    return _adaptive(theta, g, state, server, out)


def _adaptive(theta: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32) -> Float32:
    """m <- b1 m + (1 - b1) g; theta <- theta - lr m / (sqrt(v) + tau), v being the round's already.

    Reddi et al. 2020 (arXiv 2003.00295), Algorithm 2, whose Delta is -g: m starts at 0, v at tau^2, and there is
    no correction of the moments' bias, which is how torch's Adam differs.

    Raises:
        StepOverflow: v is not finite any more.
    """
    m, v = state
    np.multiply(m, np.float32(server.betas[0]), out=m)
    np.multiply(g, np.float32(1 - server.betas[0]), out=out)
    np.add(m, out, out=m)
    np.sqrt(v, out=out)
    if not math.isfinite(float(out.max(initial=0))):
        raise StepOverflow(f"{server.optimizer}'s second moment overflows: the updates are too large for float32")
    np.add(out, np.float32(server.tau), out=out)
    np.divide(m, out, out=out)
    np.multiply(out, np.float32(server.lr), out=out)
    return np.subtract(theta, out, out=out)


def _zero(server: Server) -> float:
    return 0.0


def _tau_squared(server: Server) -> float:
    return server.tau**2


MOMENTUM = {"momentum": _zero}
MOMENTS = {"first_moment": _zero, "second_moment": _tau_squared}
OPTIMIZERS = {
    "fedavg": ServerOptimizer({}, fedavg),
    "nesterov": ServerOptimizer(MOMENTUM, nesterov, velocity=True),
    "fedmom": ServerOptimizer(MOMENTUM, nesterov, velocity=True),
    "fedadagrad": ServerOptimizer(MOMENTS, fedadagrad),
    "fedyogi": ServerOptimizer(MOMENTS, fedyogi),
    "fedadam": ServerOptimizer(MOMENTS, fedadam),
}


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
