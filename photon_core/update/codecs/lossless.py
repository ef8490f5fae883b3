"""The lossless codecs. "float32" is the difference of the parameters' 32-bit patterns, restored bit for bit.

A difference of floats is not lossless: theta - fl(theta - theta_k) differs from theta_k wherever the two are more
than a factor of two apart. d = bits(theta_k) - bits(theta) mod 2^32 loses nothing. It is small where the change is
small, so it compresses well.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.tensors.numerics import from_bfloat16, to_bfloat16
from photon_core.update.codecs.base import Array, Codec, Float32

FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


def encode(theta: NDArray[np.float32], theta_k: NDArray[np.float32]) -> NDArray[np.int32]:
    """bits(theta_k) - bits(theta) mod 2^32.

    Args:
        theta: parameters that local training started from, any shape.
        theta_k: parameters of the site after training, the same shape.

    Returns:
        int32 array of the same shape.
    """
    _check(theta, theta_k, FLOAT32)
    change = np.empty(theta.shape, np.int32)
    np.subtract(_bits(theta_k), _bits(theta), out=change)
    return change


def decode(
    theta: NDArray[np.float32], change: NDArray[np.int32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """theta_k, bit for bit: the inverse of `encode`.

    Args:
        theta: parameters that local training started from, any shape.
        change: encoded change, as `encode` returned it.
        out: result array; may share memory with `change` element for element.

    Returns:
        float32 array of theta's shape (`out` when given).
    """
    _check(theta, change, INT32)
    result = np.empty(theta.shape, np.float32) if out is None else out
    np.add(_bits(theta), change, out=result.view(np.int32))
    return result


class Lossless(Codec):
    """Codec float32: `encode` and `decode` of this module."""

    name, dtype, lossless = "float32", "I32", True

    def encode(self, theta: NDArray[np.float32], theta_k: NDArray[np.float32]) -> NDArray[np.int32]:
        return encode(theta, theta_k)

    def decode(
        self, theta: NDArray[np.float32], encoded: NDArray[np.int32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        return decode(theta, encoded, out)


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return (values if values.flags.c_contiguous else np.ascontiguousarray(values)).view(np.int32)


def _check(theta: NDArray[np.float32], other: NDArray[np.generic], dtype: np.dtype[Any]) -> None:
    if theta.dtype != FLOAT32 or other.dtype != dtype:
        raise TypeError(f"float32 theta and {dtype} expected, not {theta.dtype} and {other.dtype}")
    if theta.shape != other.shape:
        raise ValueError(f"shapes differ: theta {theta.shape}, other {other.shape}")


class Plain(Codec):
    """Codec plain: theta_k itself, in float32."""

    name, dtype, lossless = "plain", "F32", True

    def decode(self, theta: Float32, encoded: Float32, out: Float32 | None = None) -> Float32:
        result = np.empty(theta.shape, np.float32) if out is None else out
        np.copyto(result, encoded.reshape(theta.shape))
        return result


class AgainstRounded(Lossless):
    """Codec float32 for a site that started from theta~, the rounded theta: theta + (theta_k - theta~)."""

    def decode(self, theta: Float32, encoded: Array, out: Float32 | None = None) -> Float32:
        base = from_bfloat16(to_bfloat16(theta), np.empty(theta.shape, np.float32))
        theta_k = super().decode(base, encoded, out)
        np.subtract(theta_k, base, out=theta_k)
        return np.add(theta, theta_k, out=theta_k)


def against(codec: Codec, base_dtype: str) -> Codec:
    """The codec for decoding updates of sites whose theta had that dtype (F32 or BF16)."""
    return AgainstRounded() if base_dtype == "BF16" and codec.lossless else codec
