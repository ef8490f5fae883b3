"""The interface of a codec for updates.

float32 loses nothing. The other codecs write the change theta_k - theta and lose part of it, within the bound that
each documents. The decoded change is added to theta. Every codec writes each block of `block` elements, counted
along the flat tensor, independently, so that any piece of whole blocks is one range of bytes. A tensor's last
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
    """An encoding of a site's parameters, relative to the theta that training started from.

    Attributes:
        name: name in update manifests.
        dtype: element type of the encoded tensors, by its safetensors name.
        block: elements of theta that are written together.
        lossless: flag: theta_k is restored bit for bit.
    """

    name: str
    dtype: str
    block: int = 1
    lossless: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the encoded tensor for a theta of this shape."""
        return shape

    def position(self, element: int) -> int:
        """The offset in the flat encoded tensor of an element of theta: the start of a block, or the end."""
        return element

    @abstractmethod
    def decode(self, theta: Float32, encoded: Array, out: Float32 | None = None) -> Float32:
        """theta_k, of whole blocks or of a whole tensor.

        Args:
            theta: parameters that local training started from, any shape.
            encoded: the encoded update of the same elements.
            out: result array of theta's shape; may be theta or, for 4-byte dtypes, `encoded`.

        Raises:
            CorruptFile: the codec cannot have written `encoded`.
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
        """The decoded change, within the codec's error: a float32 array of that shape."""
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
        """Encode whole blocks of a flat change, or everything from the start of a block to the end."""

    @abstractmethod
    def decode_piece(self, encoded: Array, out: Float32) -> None:
        """The inverse of `encode_piece`."""
