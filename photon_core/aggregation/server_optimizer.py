"""ServerOpt of Algorithm 1: how the global model moves, given the mean of the sites' parameters.

g = theta - mean is the weighted mean of the pseudo-gradients theta - theta_k, because the weights sum to 1.
Every optimizer works element by element, so it may be given any piece of the parameters. To add one, write
its step, name its state tensors (zeros before the first round) in OPTIMIZERS, and its name in
schemas.federation.Server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.server import Server

Float32 = NDArray[np.float32]
Step = Callable[[Float32, Float32, Float32, Sequence[Float32], Server, Float32], Float32]


@dataclass(frozen=True)
class ServerOptimizer:
    """One server optimizer.

    Args:
        state: names of its state tensors; each has theta's shapes and starts at zero.
        step: (theta, mean, g, state, server, out) -> out: the new theta. `state` is changed in place; `out`
            is none of the others.
    """

    state: tuple[str, ...]
    step: Step


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
    -lr (g + mu m) = -lr m', so theta <- v' - lr mu m', and v' - theta keeps the form; m = 0 at the start.
    """
    (momentum,) = state
    np.multiply(momentum, np.float32(server.momentum), out=momentum)
    np.add(momentum, g, out=momentum)
    fedavg(theta, mean, g, (), server, out)
    return np.subtract(out, momentum * np.float32(server.lr * server.momentum), out=out)


OPTIMIZERS = {
    "fedavg": ServerOptimizer((), fedavg),
    "nesterov": ServerOptimizer(("momentum",), nesterov),
    "fedmom": ServerOptimizer(("momentum",), nesterov),
}
