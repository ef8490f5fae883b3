"""The arithmetic of one piece of the model: decode, average, step, and the sums behind the norms.

A piece is processed in blocks that stay in a core's caches, with all sites in one array. Every operation is
element by element and in a fixed order. So no bit of the result depends on where pieces and blocks end, or on the
thread that processes them. The last bits of the sums depend on the blocks, and on nothing else.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.blame import blame
from photon_core.aggregation.engine.inputs import Pass
from photon_core.aggregation.engine.norms import gram
from photon_core.aggregation.server_optimizer import OPTIMIZERS
from photon_core.errors import UpdateRejected
from photon_core.tensors.numerics import dots
from photon_core.tensors.reader import Piece
from photon_core.update.codecs.registry import Codec

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
LEAST_BLOCK, MOST_BLOCK = 1 << 12, 1 << 16  # elements of a site; multiples of every codec's block
CACHED = 1 << 20  # elements of a block of all sites


def block_elements(sites: int) -> int:
    """Elements of a block for that many sites; a power of two."""
    return max(LEAST_BLOCK, min(MOST_BLOCK, 1 << (CACHED // sites).bit_length() - 1))


class Arithmetic:
    """theta' = ServerOpt(theta, mean of theta_k), a piece at a time. Any number of threads may use it.

    Args:
        one: inputs of the pass.
        codecs: codecs by source, in the order of names.
    """

    def __init__(self, one: Pass, codecs: dict[str, Codec]) -> None:
        self.one, self.codecs = one, codecs
        self.optimizer = OPTIMIZERS[one.server.optimizer]
        self.block = block_elements(len(codecs))
        self._scratch = threading.local()  # memory of each thread, reused for every piece

    def work(
        self,
        piece: Piece,
        theta: Float32,
        encoded: Sequence[NDArray[Any]],
        state: Sequence[Float32],
        out: Float32,
        pairs: bool,
    ) -> tuple[list[Float64], Float64]:
        """Process one piece.

        Args:
            piece: name of the tensor, and place of the slices in it.
            theta: slice of the model, in whole blocks of every codec or to the end of the tensor.
            encoded: slice of every update with the same elements.
            state: slices of the optimizer's state; changed in place.
            out: result array, filled with the new theta.
            pairs: flag: compare the members with each other.

        Returns:
            for every block of the piece, the sums for Norms.add; and the piece's part of Pairs.gram.

        Raises:
            UpdateRejected: a site's parameters are NaN or infinite, or too large for float32.
        """
        members = len(self.codecs) if self.one.look else 0
        sums, products = [], np.zeros((members, members))
        memory = self._memory()
        with np.errstate(all="ignore"):  # `_look` finds values that are not finite, and names the site
            for start in range(0, theta.size, self.block):
                end = min(start + self.block, theta.size)
                rows, deltas = (array[:, : end - start] for array in memory)
                np.copyto(rows[0], theta[start:end])
                for row, (site, codec), update in zip(rows[1:], self.codecs.items(), encoded, strict=True):
                    with blame(site):
                        codec.decode(rows[0], update[codec.position(start) : codec.position(end)], row)
                kept = [values[start:end] for values in state]
                sums.append(self._step(piece.name, piece.start + start, rows, deltas, kept, out[start:end]))
                if pairs:
                    products += gram(deltas[1:])
        return sums, products

    def _step(
        self, tensor: str, at: int, rows: Float32, deltas: Float32, state: Sequence[Float32], out: Float32
    ) -> Float64:
        """Average and step one block, which begins at element `at` of the tensor.

        `rows` are theta and the sites' parameters. `deltas` receive g and the sites' pseudo-gradients.
        """
        theta, g, mean = rows[0], deltas[0], self._mean()[: out.size]
        self.one.rules.of(tensor)(rows, mean, deltas)
        if self.one.rules.noise is not None:
            self.one.rules.noise.add(tensor, at, mean)
        np.subtract(theta, mean, out=g)
        members = self._look(tensor, rows, deltas) if self.one.look else []
        gradient = dots(deltas[:1], g)
        if np.isfinite(gradient).all():  # else the mean is not finite, and no step is possible
            self.optimizer.step(theta, mean, g, state, self.one.server, out)
            self.optimizer.lower(state, self.one.lr_scale)
        step = np.subtract(out, theta, out=mean)[None]
        return np.concatenate([*members, gradient, dots(step, step), dots(out[None], out[None])])

    def _look(self, tensor: str, rows: Float32, deltas: Float32) -> list[Float64]:
        """|theta - theta_k|^2 and <theta - theta_k, g> of every member. `deltas` receive the pseudo-gradients.

        Raises:
            UpdateRejected: a member's parameters are not finite.
        """
        np.subtract(rows[0], rows[1:], out=deltas[1:])
        squares = dots(deltas[1:], deltas[1:])
        if not np.isfinite(squares).all():
            number = int(np.argmin(np.isfinite(squares)))
            finite = np.isfinite(rows[1 + number]).all()
            what = "values too large for float32's arithmetic" if finite else "NaN or Inf"
            raise UpdateRejected(list(self.codecs)[number], f"tensor '{tensor}' holds {what}")
        return [squares, dots(deltas[1:], deltas[0])]

    def _memory(self) -> tuple[Float32, Float32]:
        """This thread's memory: rows for theta and every site, twice."""
        if not hasattr(self._scratch, "rows"):
            shape = (len(self.codecs) + 1, self.block)
            self._scratch.rows, self._scratch.deltas = np.empty(shape, np.float32), np.empty(shape, np.float32)
            self._scratch.mean = np.empty(self.block, np.float32)
        return self._scratch.rows, self._scratch.deltas

    def _mean(self) -> Float32:
        mean: Float32 = self._scratch.mean
        return mean
