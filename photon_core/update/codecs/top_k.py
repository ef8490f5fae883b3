"""Codec "topk:B:K": the K largest changes of every block of B elements, as signed bytes and one scale.

A block is its scale s (float32, little endian), the K indices within the block in ascending order (bytes, or
little-endian 16-bit numbers where B > 256), and the K numbers q nearest to c / s, signed bytes from -127 to 127.
s is the largest |c| over 127. A last block of r elements keeps ceil(K r / B).

The error of an element that is sent is at most 1/254 of the largest in its block (1 + 2^-20), or 2^-140 where s is
subnormal. The error of any other element is at most the least |c| that is sent. So
|c - decoded|^2 <= (1 - K/B) |c|^2 + K (s/2)^2 in every whole block.
"""

import numpy as np

from photon_core.errors import CorruptFile
from photon_core.update.codecs.base import Array, Float32
from photon_core.update.codecs.blocks import Blocks, quantised


class TopK(Blocks):
    """The codec.

    Args:
        block: B, elements of a block.
        kept: K, elements of a block that are sent.
    """

    largest = 127

    def __init__(self, block: int, kept: int) -> None:
        super().__init__(block)
        self.kept = kept
        self.name = f"topk:{block}:{kept}"
        self._index = np.dtype("|u1" if block <= 256 else "<u2")

    def body(self, elements: int) -> int:
        return self._count(elements) * (self._index.itemsize + 1)

    def put(self, values: Float32, scales: Float32, body: Array) -> None:
        kept = self._count(values.shape[1])
        middle = kept * self._index.itemsize
        first = values.shape[1] - kept
        chosen = np.argpartition(np.abs(values), min(first, values.shape[1] - 1), axis=1)[:, first:]
        chosen.sort(axis=1)
        body[:, :middle] = chosen.astype(self._index).view(np.uint8)
        body[:, middle:].view(np.int8)[:] = quantised(np.take_along_axis(values, chosen, axis=1), scales, 127)

    def take(self, body: Array, scales: Float32, out: Float32) -> None:
        kept = self._count(out.shape[1])
        middle = kept * self._index.itemsize
        chosen = np.ascontiguousarray(body[:, :middle]).view(self._index).astype(np.intp)
        if int(chosen[:, -1].max()) >= out.shape[1] or (chosen[:, 1:] <= chosen[:, :-1]).any():
            raise CorruptFile(f"indices of codec {self.name} do not ascend within their block")
        out.fill(0)
        np.put_along_axis(out, chosen, body[:, middle:].view(np.int8) * scales, axis=1)

    def _count(self, elements: int) -> int:
        return -(-self.kept * elements // self.block)
