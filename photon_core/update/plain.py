"""Codec "plain": theta_k itself, in float32, as a server writes it that averages for another (tree.py)."""

import numpy as np
from numpy.typing import NDArray

from photon_core.update.codecs.base import Codec

Float32 = NDArray[np.float32]


class Plain(Codec):
    """The codec of this module."""

    name, dtype, lossless = "plain", "F32", True

    def decode(self, theta: Float32, encoded: Float32, out: Float32 | None = None) -> Float32:
        result = np.empty(theta.shape, np.float32) if out is None else out
        np.copyto(result, encoded.reshape(theta.shape))
        return result
