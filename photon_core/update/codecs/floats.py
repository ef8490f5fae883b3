"""Codecs "bfloat16" and "float16": the change in half the bits, rounded to nearest, ties to even.

Values beyond the type's largest become the largest. Error of a change c within the range:
bfloat16: at most 2^-8 |c|, but 2^-134 for the smallest (|c| < 2^-126); range 3.39e38.
float16: at most 2^-11 |c|, but 2^-25 for the smallest (|c| < 2^-14); range 65504.
"""

import numpy as np

from photon_core.tensors.numerics import from_bfloat16, to_bfloat16
from photon_core.update.codecs.base import Array, Float32, Lossy

LARGEST_FLOAT16 = 65504.0


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
