"""Codecs "int8:B", "int4:B" and "int3:B": whole numbers and one scale for every block of B elements.

A block is its scale s (float32, little endian), then for each element in order the number q nearest to c / s, ties
to even:

- int8: a signed byte from -127 to 127.
- int4: two to a byte, the first in the low half, q + 8 for q from -7 to 7. An odd last one is paired with an 8.
- int3: eight to three bytes, which are one little-endian number with the first element in its lowest bits, q + 4
  for q from -3 to 3. A short last group is filled up with 4.

s is the block's largest |c| over 127, 7 or 3. So the error of an element is at most 1/254, 1/14 or 1/6 of the
largest in its block (1 + 2^-20), or 2^-140 where s is subnormal.
"""

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from photon_core.update.codecs.base import Array, Float32, Lossy

SCALE = 4  # bytes


class Blocks(Lossy):
    """The part that the three codecs share.

    Args:
        block: elements of a block, an even number.
    """

    dtype, numpy_dtype = "U8", np.dtype("|u1")
    largest: int  # q

    def __init__(self, block: int) -> None:
        self.block = block
        self.name = f"{type(self).__name__.lower()}:{block}"

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        count = 1
        for size in shape:
            count *= size
        return (self.position(count),)

    def position(self, element: int) -> int:
        blocks, rest = divmod(element, self.block)
        return blocks * (SCALE + self.body(self.block)) + (SCALE + self.body(rest) if rest else 0)

    def encode_piece(self, change: Float32, out: Array) -> None:
        for values, rows in self._rows(change, out):
            scales = block_scales(values, self.largest)
            rows[:, :SCALE] = scales.view(np.uint8).reshape(-1, SCALE)
            self.put(values, scales[:, None], rows[:, SCALE:])

    def decode_piece(self, encoded: Array, out: Float32) -> None:
        for values, rows in self._rows(out, encoded):
            scales = np.ascontiguousarray(rows[:, :SCALE]).view("<f4")
            self.take(rows[:, SCALE:], scales, values)

    def _rows(self, values: Float32, coded: Array) -> list[tuple[Float32, Array]]:
        """The whole blocks and their bytes, a row each, then the short block."""
        whole = len(values) // self.block * self.block
        middle = self.position(whole)
        rows = []
        if whole:
            rows.append((values[:whole].reshape(-1, self.block), coded[:middle].reshape(whole // self.block, -1)))
        if whole < len(values):
            rows.append((values[whole:].reshape(1, -1), coded[middle:].reshape(1, -1)))
        return rows

    @abstractmethod
    def body(self, elements: int) -> int:
        """Bytes of that many elements of a block, without the scale."""

    @abstractmethod
    def put(self, values: Float32, scales: Float32, body: Array) -> None:
        """Encode blocks, a row each, into `body`; `scales` is a column."""

    @abstractmethod
    def take(self, body: Array, scales: Float32, out: Float32) -> None:
        """The inverse of `put`."""


class Int8(Blocks):
    largest = 127

    def body(self, elements: int) -> int:
        return elements

    def put(self, values: Float32, scales: Float32, body: Array) -> None:
        body.view(np.int8)[:] = quantised(values, scales, self.largest)

    def take(self, body: Array, scales: Float32, out: Float32) -> None:
        np.multiply(body.view(np.int8), scales, out=out)


class Int4(Blocks):
    largest = 7

    def body(self, elements: int) -> int:
        return -(-elements // 2)

    def put(self, values: Float32, scales: Float32, body: Array) -> None:
        halves = quantised(values, scales, self.largest).view(np.uint8)
        np.add(halves, np.uint8(8), out=halves)
        pairs = halves.shape[1] // 2
        np.left_shift(halves[:, 1::2], np.uint8(4), out=body[:, :pairs])
        np.bitwise_or(body[:, :pairs], halves[:, 0 : 2 * pairs : 2], out=body[:, :pairs])
        if halves.shape[1] % 2:
            body[:, -1] = halves[:, -1] | np.uint8(8 << 4)

    def take(self, body: Array, scales: Float32, out: Float32) -> None:
        pairs = _PAIRS[body].view(np.float32)  # (blocks, an even number of elements)
        np.multiply(pairs[:, : out.shape[1]], scales, out=out)


class Int3(Blocks):
    largest = 3

    def body(self, elements: int) -> int:
        return 3 * -(-elements // 8)

    def put(self, values: Float32, scales: Float32, body: Array) -> None:
        rows, elements = values.shape
        codes = np.full((rows, -(-elements // 8) * 8), 4, np.uint8)
        np.add(quantised(values, scales, self.largest).view(np.uint8), np.uint8(4), out=codes[:, :elements])
        eights = codes.astype("<u4").reshape(rows, -1, 8)
        words = np.bitwise_or.reduce(eights << np.arange(0, 24, 3, dtype=np.uint32), axis=2)
        body[:] = words.astype("<u4").view(np.uint8).reshape(rows, -1, 4)[:, :, :3].reshape(rows, -1)

    def take(self, body: Array, scales: Float32, out: Float32) -> None:
        rows = len(body)
        words = np.zeros((rows, body.shape[1] // 3, 4), np.uint8)
        words[:, :, :3] = body.reshape(rows, -1, 3)
        eights = words.view("<u4").reshape(rows, -1, 1) >> np.array([0, 12], np.uint32) & 4095
        np.multiply(_FOURS[eights].reshape(rows, -1)[:, : out.shape[1]], scales, out=out)


_FOURS = ((np.arange(4096)[:, None] >> np.arange(0, 12, 3) & 7) - 4).astype(np.float32)
_BYTES = np.arange(256)
_PAIRS = (np.stack([_BYTES & 15, _BYTES >> 4], axis=1) - 8).astype(np.float32).view(np.uint64).reshape(-1)


def block_scales(values: Float32, levels: int) -> Float32:
    """max |c| / levels of every row, little endian; limited so that levels times it stays finite."""
    limit = np.nextafter(np.float32(np.finfo(np.float32).max / levels), np.float32(0))
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    scales = np.minimum(largest / np.float32(levels), limit) + np.float32(0)  # no -0
    return scales.astype("<f4")


def quantised(values: Float32, scales: Float32, levels: int) -> NDArray[np.int8]:
    """The whole numbers nearest to values / scales, from -levels to levels; 0 where the scale is 0."""
    q = np.divide(values, np.where(scales == 0, np.float32(np.inf), scales))
    np.rint(q, out=q)
    return np.clip(q, -levels, levels, out=q).astype(np.int8)
