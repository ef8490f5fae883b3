"""ServerOpt of Algorithm 1: the step of the global model, given the mean of the sites' parameters.

g = theta - mean is the weighted mean of the pseudo-gradients theta - theta_k, because the weights sum to 1.
Every optimizer works element by element, so that it can process any piece of the parameters. To add one, write its
step, put its state tensors and their initial values into OPTIMIZERS, and its name into
schemas.sections.server.Server.
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
        state: initial values by name of the state tensors, which have theta's shapes.
        step: function (theta, mean, g, state, server, out) -> out, the new theta. It changes `state` in place.
            `out` shares no memory with the other arguments.
        velocity: flag: the state moves the model in later rounds by its own size. `lower` then scales it as the
            guard scales the step.
    """

    state: Mapping[str, Callable[[Server], float]]
    step: Step
    velocity: bool = False

    def lower(self, state: Sequence[Float32], factor: float) -> None:
        """Multiply the state by `factor`, after a step whose learning rate the guard has multiplied by it.

        In `nesterov`, g contributes lr (1 + mu) g to its own step, and lr mu^2 g, lr mu^3 g, ... to the following
        rounds, at the full lr. So a step that the guard cuts because it blows the model up would still be made
        later: mu^2 / (1 - mu) g in sum (8.1 g with a momentum of 0.9). Therefore the state keeps the velocity of
        the step that was actually made. All of m is scaled, not the round's own g alone, because a blow-up may
        have built up in m. The adaptive optimizers divide m by the root of v, which includes g, too. However large
        g was, their next steps are about lr, so their state is not scaled.
        """
        if self.velocity and factor != 1:
            for values in state:
                np.multiply(values, np.float32(factor), out=values)


def fedavg(
    theta: Float32, mean: Float32, g: Float32, _state: Sequence[Float32], server: Server, out: Float32
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
    holds for a constant lr. If a schedule changes lr, both names mean this form. If the guard lowers lr, m is
    scaled, too (ServerOptimizer.lower).
    """
    (momentum,) = state
    np.multiply(momentum, np.float32(server.momentum), out=momentum)
    np.add(momentum, g, out=momentum)
    fedavg(theta, mean, g, (), server, out)
    return np.subtract(out, momentum * np.float32(server.lr * server.momentum), out=out)


def fedadagrad(
    theta: Float32, _mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """v <- v + g^2, in the step of `_adaptive`."""
    np.multiply(g, g, out=out)
    np.add(state[1], out, out=state[1])
    return _adaptive(theta, g, state, server, out)


def fedyogi(
    theta: Float32, _mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
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
    theta: Float32, _mean: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32
) -> Float32:
    """v <- b2 v + (1 - b2) g^2, in the step of `_adaptive`."""
    v = state[1]
    np.multiply(g, g, out=out)
    np.multiply(out, np.float32(1 - server.betas[1]), out=out)
    np.multiply(v, np.float32(server.betas[1]), out=v)
    np.add(v, out, out=v)
    return _adaptive(theta, g, state, server, out)


def _adaptive(theta: Float32, g: Float32, state: Sequence[Float32], server: Server, out: Float32) -> Float32:
    """m <- b1 m + (1 - b1) g; theta <- theta - lr m / (sqrt(v) + tau), where v includes this round's g.

    Reddi et al. 2020 (arXiv 2003.00295), Algorithm 2, whose Delta is -g. m starts at 0, v at tau^2. The moments'
    bias is not corrected, unlike in torch's Adam.

    Raises:
        StepOverflow: v is no longer finite.
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


def _zero(_server: Server) -> float:
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
    """The server learning rate of round t.

    The rate warms up linearly from lr / warmup_rounds to lr over the first warmup_rounds rounds. Then it stays at
    lr (constant), or falls from lr to alpha lr. It reaches alpha lr at the round after total_rounds, and stays
    there.

    Args:
        t: number of the round, from 1.
        server: server section; its lr is the maximum.
        rounds: number of rounds of the federation, used if the schedule has no total_rounds.
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
    """The server's settings, with the learning rate of round t."""
    return server.model_copy(update={"lr": server_lr(t, server, rounds)})
