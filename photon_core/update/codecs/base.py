"""What a codec of updates is.

float32 loses nothing. The others write the change theta_k - theta and lose some of it, within the bound that each
documents; what they decode to is added to theta. Whatever the codec, a block of `block` elements, counted along
the flat tensor, is written on its own, so that any piece of whole blocks is one range of bytes. A tensor's last
block may be shorter.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import PhotonError

Float32 = NDArray[np.float32]
Array = NDArray[Any]
CHUNK = 1 << 17  # elements encoded at a time: they stay in a core's cache


class Codec(ABC):
    """How a site's parameters are written against the theta that they started from.

    Attributes:
        name: as in update manifests.
        dtype: safetensors' name of the encoded tensors' element type.
        block: elements of theta that are written together.
        lossless: whether theta_k comes back bit for bit.
    """

    name: str
    dtype: str
    block: int = 1
    lossless: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The encoded tensor's shape, of theta's."""
        return shape

    def position(self, element: int) -> int:
        """Where an element of the flat theta is in the flat encoded tensor: the start of a block, or the end."""
        return element

    @abstractmethod
    def decode(self, theta: Float32, encoded: Array, out: Float32 | None = None) -> Float32:
        """theta_k, of whole blocks or all of a tensor.

        Args:
            theta: what local training started from, any shape.
            encoded: the codec's bytes of it.
            out: where to put the result, of theta's shape; may be theta or, for 4-byte dtypes, `encoded`.

        Raises:
            CorruptFile: `encoded` is nothing that the codec writes.
        """


class Lossy(Codec):
    """A codec of the change theta_k - theta."""

    numpy_dtype: np.dtype[Any]

    def encode(self, change: Float32) -> Array:
        """The encoded change, in the encoded shape. The same change gives the same bytes.

        Raises:
            PhotonError: the change is not finite.
        """
        flat = np.ascontiguousarray(change, np.float32).reshape(-1)
        encoded = np.empty(self.position(flat.size), self.numpy_dtype)
        for start in range(0, flat.size, CHUNK):
            piece = flat[start : start + CHUNK]
            if not np.isfinite(piece).all():
                raise PhotonError("the update holds NaN or Inf: lower local.optimizer.lr")
            self.encode_piece(piece, encoded[self.position(start) : self.position(start + piece.size)])
        return encoded.reshape(self.shape(change.shape))

    def change(self, encoded: Array, shape: tuple[int, ...]) -> Float32:
        """What was encoded, but for the codec's error: a float32 array of that shape."""
        out = np.empty(shape, np.float32)
        flat, source = out.reshape(-1), encoded.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            piece = flat[start : start + CHUNK]
            self.decode_piece(source[self.position(start) : self.position(start + piece.size)], piece)
        return out

    def decode(self, theta: Float32, encoded: Array, out: Float32 | None = None) -> Float32:
        result = np.empty(theta.shape, np.float32) if out is None else out
        if result is theta:
            return np.add(theta, self.change(encoded, theta.shape), out=result)
        self.decode_piece(encoded.reshape(-1), result.reshape(-1))
        return np.add(theta, result, out=result)

    @abstractmethod
    def encode_piece(self, change: Float32, out: Array) -> None:
        """Whole blocks of a flat change, or all of it from the start of a block on."""

    @abstractmethod
    def decode_piece(self, encoded: Array, out: Float32) -> None:
        """The inverse."""
