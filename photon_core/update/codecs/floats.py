"""Codecs "bfloat16" and "float16": the change in half the bits, rounded to nearest, ties to even.

Values beyond the type's largest become the largest. Error of a change c within the range:
bfloat16: at most 2^-8 |c|, but 2^-134 for the smallest (|c| < 2^-126); range 3.39e38.
float16: at most 2^-11 |c|, but 2^-25 for the smallest (|c| < 2^-14); range 65504.
"""

import numpy as np
from numpy.typing import NDArray

from photon_core.update.codecs.base import Array, Float32, Lossy

LARGEST_BFLOAT16 = 0x7F7F
LARGEST_FLOAT16 = 65504.0


def to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """The upper halves of finite float32 values, rounded to nearest, ties to even; never to infinity."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> np.uint32(16)
    np.bitwise_and(rounded, np.uint32(1), out=rounded)
    np.add(rounded, np.uint32(0x7FFF), out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, np.uint32(16), out=rounded)
    found = rounded.astype(np.uint16)
    over = (found & np.uint16(0x7FFF)) > LARGEST_BFLOAT16
    if over.any():
        found[over] = (found[over] & np.uint16(0x8000)) | np.uint16(LARGEST_BFLOAT16)
    return found


def from_bfloat16(halves: NDArray[np.uint16], out: Float32) -> Float32:
    """The same numbers as float32."""
    np.left_shift(halves, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    return out


class BFloat16(Lossy):
    name, dtype, numpy_dtype = "bfloat16", "BF16", np.dtype("<u2")

    def encode_piece(self, change: Float32, out: Array) -> None:
        out[:] = to_bfloat16(change)

    def decode_piece(self, encoded: Array, out: Float32) -> None:
        from_bfloat16(encoded, out)


class Float16(Lossy):
    name, dtype, numpy_dtype = "float16", "F16", np.dtype("<f2")

    def encode_piece(self, change: Float32, out: Array) -> None:
        out[:] = np.clip(change, -LARGEST_FLOAT16, LARGEST_FLOAT16)

    def decode_piece(self, encoded: Array, out: Float32) -> None:
        out[:] = encoded
