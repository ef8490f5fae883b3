"""Inner products of float32 arrays in float64 precision, for norms and cosines; rounding to bfloat16."""

import numpy as np
from numpy.typing import NDArray

LARGEST_BFLOAT16 = 0x7F7F

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
DOT = 1 << 12  # elements of a partial inner product: few enough that BLAS starts no threads for them


def dots(a: Float32, b: Float32) -> Float64:
    """The inner products of rows. Short runs are summed in float32 and their sums in float64. A row whose float32
    sum overflows is summed in float64 throughout.

    Args:
        a: array (K, n).
        b: second operand: an array (K, n), or one row (n,) for all.
    """
    whole = a.shape[1] - a.shape[1] % DOT
    values: Float64 = np.vecdot(a[:, whole:], b[..., whole:]).astype(np.float64)
    if whole:
        runs = [part[..., :whole].reshape(*part.shape[:-1], -1, DOT) for part in (a, b)]
        values += np.vecdot(*runs).sum(axis=1, dtype=np.float64)
    for k in np.flatnonzero(~np.isfinite(values)):
        values[k] = np.dot(a[k].astype(np.float64), (b if b.ndim == 1 else b[k]).astype(np.float64))
    return values


def to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """The upper halves of finite float32 values, rounded to nearest, ties to even; never to infinity."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> np.uint32(16)
    np.bitwise_and(rounded, np.uint32(1), out=rounded)
    np.add(rounded, np.uint32(0x7FFF), out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, np.uint32(16), out=rounded)
    halves = rounded.astype(np.uint16)
    over = (halves & np.uint16(0x7FFF)) > LARGEST_BFLOAT16
    if over.any():
        halves[over] = (halves[over] & np.uint16(0x8000)) | np.uint16(LARGEST_BFLOAT16)
    return halves


def from_bfloat16(halves: NDArray[np.uint16], out: Float32) -> Float32:
    """The same numbers as float32."""
    np.left_shift(halves, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    return out
