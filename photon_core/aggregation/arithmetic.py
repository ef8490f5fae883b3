"""The arithmetic of one piece of the model: decode, average, step, and the sums that the norms are made of.

A piece is worked on in blocks that stay in a core's cache while all is done to them. Every operation is element
by element and in one order, so that no bit of the result depends on where pieces and blocks end, or on which
thread does them. The sums do depend on the blocks, in their last bits, and on nothing else.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.combine import Combine
from photon_core.aggregation.pairs import gram
from photon_core.aggregation.server_optimizer import ServerOptimizer
from photon_core.errors import CorruptFile, UpdateRejected
from photon_core.update.codec import Codec
from schemas.server import Server

Float32 = NDArray[np.float32]
BLOCK = 1 << 16  # elements: a handful of such blocks fit a core's cache; a multiple of every codec's block
DOT = 1 << 13  # elements of a partial inner product: few enough that BLAS starts no threads for them


class Arithmetic:
    """theta' = ServerOpt(theta, weighted mean of theta_k), a piece at a time; for any number of threads.

    Args:
        codecs: of every site's update, in the order of the sites' names.
        combine: the mean.
        optimizer, server: the server optimizer and its numbers.
    """

    def __init__(
        self, codecs: dict[str, Codec], combine: Combine, optimizer: ServerOptimizer, server: Server
    ) -> None:
        self.codecs, self.combine, self.optimizer, self.server = codecs, combine, optimizer, server
        self._scratch = threading.local()  # a thread's own memory, used again for every piece

    def work(
        self,
        tensor: str,
        theta: Float32,
        encoded: Sequence[NDArray[Any]],
        state: Sequence[Float32],
        out: Float32,
        look: bool,
    ) -> tuple[list[list[float]], NDArray[np.float64]]:
        """One piece; `encoded` and `state` are changed in place, `out` is filled with the new theta.

        Args:
            tensor: its name.
            theta: of whole blocks of every codec, or to the end of the tensor.
            encoded: the same elements of every update.
            look: whether the sites are compared with each other.

        Returns:
            for every block of the piece, the sums that Norms.add takes; and the piece's part of Pairs.gram.

        Raises:
            UpdateRejected: a site's parameters are NaN or infinite, or too large for float32.
        """
        sums, pairs = [], np.zeros((len(self.codecs), len(self.codecs)))
        with np.errstate(all="ignore"):  # what is not finite is found, and the site named
            for start in range(0, theta.size, BLOCK):
                end = min(start + BLOCK, theta.size)
                parameters = [
                    self._decode(
                        number, site, theta[start:end], update[codec.position(start) : codec.position(end)]
                    )
                    for number, ((site, codec), update) in enumerate(
                        zip(self.codecs.items(), encoded, strict=True)
                    )
                ]
                if look:
                    pairs += gram(theta[start:end], parameters)
                kept = [values[start:end] for values in state]
                sums.append(self._step(tensor, theta[start:end], parameters, kept, out[start:end]))
        return sums, pairs

    def _decode(self, number: int, site: str, theta: Float32, encoded: NDArray[Any]) -> Float32:
        codec = self.codecs[site]
        out = encoded.view(np.float32) if codec.lossless else self._buffer(3 + number, theta.size)
        try:
            return codec.decode(theta, encoded, out)
        except CorruptFile as error:
            raise UpdateRejected(site, str(error)) from error

    def _step(
        self, tensor: str, theta: Float32, parameters: Sequence[Float32], state: Sequence[Float32], out: Float32
    ) -> list[float]:
        mean, g, scratch = (self._buffer(number, theta.size) for number in range(3))
        self.combine(theta, parameters, mean, scratch)
        np.subtract(theta, mean, out=g)
        squares, along = [], []
        for site, theta_k in zip(self.codecs, parameters, strict=True):
            np.subtract(theta, theta_k, out=scratch)
            squares.append(square := dot(scratch, scratch))
            along.append(dot(scratch, g))
            if not math.isfinite(square):
                what = "values too large for float32's arithmetic" if np.isfinite(theta_k).all() else "NaN or Inf"
                raise UpdateRejected(site, f"tensor '{tensor}' holds {what}")
        gradient = dot(g, g)
        if math.isfinite(gradient):  # else the mean is not finite, and there is no step to take
            self.optimizer.step(theta, mean, g, state, self.server, out)
        np.subtract(out, theta, out=scratch)
        return [*squares, *along, gradient, dot(scratch, scratch), dot(out, out)]

    def _buffer(self, number: int, size: int) -> Float32:
        buffers = self._scratch.__dict__.setdefault("buffers", {})
        if number not in buffers:
            buffers[number] = np.empty(BLOCK, np.float32)
        found: Float32 = buffers[number][:size]
        return found


def dot(a: Float32, b: Float32) -> float:
    """The inner product: float32 over short runs, float64 over those; float64 alone where float32 overflows."""
    whole = a.size - a.size % DOT
    value = float(np.dot(a[whole:], b[whole:]))
    if whole:
        runs = np.vecdot(a[:whole].reshape(-1, DOT), b[:whole].reshape(-1, DOT))
        value += float(runs.sum(dtype=np.float64))
    return value if math.isfinite(value) else float(np.dot(a.astype(np.float64), b.astype(np.float64)))
