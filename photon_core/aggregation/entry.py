"""Entry of a node into a round: its key layers become means over pools (WorldLM, Algorithm 1, lines 3-6).

Row 0 of a pool is the node's own layer, row 1 its parent's; residuals follow. The mean is that of attention
(aggregation/attention.py), with all shares 1. Two passes, with NumPy alone, read local files block by block and
write local files. The bits depend only on the rows and the settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.attention import attend
from photon_core.aggregation.choice import UNCHOSEN
from photon_core.aggregation.means import weighted_mean
from photon_core.aggregation.sums import BLOCK, Sums, TensorSums, block_sums
from photon_core.errors import CorruptFile
from photon_core.store.store import Store
from photon_core.tensors.local import LocalTensors
from photon_core.tensors.shards import SHARD_BYTES, write_shards
from schemas.manifests import Attention, FileEntry
from schemas.sections.worldlm import WorldLM

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
OWN = "own"
PIECE = 8 * BLOCK  # elements of a row that are in memory at a time


class Row(NamedTuple):
    """One row of a pool: its name, and the tensors of files that hold it; they may hold others, too."""

    name: str
    tensors: LocalTensors


def fetched(
    name: str, store: Store, place: str, entries: Sequence[FileEntry], folder: Path, connections: int
) -> Row:
    """A row whose files are copied from a folder of a store, `place`, to a folder of this machine.

    Raises:
        CorruptFile: a file does not match its entry.
    """
    return Row(name, LocalTensors.of(store.fetch_all(entries, place, folder, connections), entries))


@dataclass(frozen=True)
class Entered:
    """The key layers that a node enters with.

    Args:
        folder: folder of the files.
        files: files of all key layers, ordered by layer; paths relative to the folder.
        attention: key layer -> its attention.
    """

    folder: Path
    files: list[FileEntry] = field(default_factory=list)
    attention: dict[str, Attention] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / entry.path for entry in self.files]


def enter_layers(
    pools: Mapping[str, Sequence[Row]],
    layers: Mapping[str, Sequence[str]],
    worldlm: WorldLM,
    folder: Path,
    max_bytes: int = SHARD_BYTES,
    option: str = UNCHOSEN,
) -> Entered:
    """Write the key layers that a node enters with, each of which is the mean of its pool.

    Args:
        pools: key layer -> its rows, the node's own row first.
        layers: key layer -> its parameters.
        worldlm: settings of the node.
        folder: folder for the files, <layer>-00001-of-00001.safetensors and so on.
        max_bytes: maximum size of a file; a larger tensor is split by rows.
        option: option of `temperature: auto`; not used otherwise.

    Raises:
        CorruptFile: a row has other tensors than the first, or holds NaN or infinity.
    """
    found = Entered(folder)
    for layer, rows in pools.items():
        names = sorted(layers[layer])
        _check(layer, names, rows)
        attention = _attention(layer, names, rows, worldlm, option)
        tensors = {name: rows[0].tensors.tensors[name] for name in names}

        def mean(name: str, rows: Sequence[Row] = rows, attention: Attention = attention) -> Float32:
            return _mean(name, rows, attention.weights)

        found.files.extend(write_shards(folder, f"{layer}-", tensors, max_bytes, mean))
        found.attention[layer] = attention
    return found


def _check(layer: str, names: Sequence[str], rows: Sequence[Row]) -> None:
    first = rows[0].tensors.tensors
    for row in rows:
        for name in names:
            if name not in first or row.tensors.tensors.get(name) != first[name]:
                raise CorruptFile(f"key layer '{layer}': tensor '{name}' of row '{row.name}' is not the model's")


def _attention(layer: str, names: Sequence[str], rows: Sequence[Row], worldlm: WorldLM, option: str) -> Attention:
    elements = sum(prod(rows[0].tensors.tensors[name].shape) for name in names)
    sums = Sums.of((_sums(name, rows) for name in names), elements)
    for row, square in zip(rows, sums.squares, strict=True):
        if not np.isfinite(square):
            raise CorruptFile(f"key layer '{layer}' of row '{row.name}' holds NaN or infinity")
    return attend([row.name for row in rows], sums, worldlm, option=option)


def _sums(name: str, rows: Sequence[Row]) -> Float64:
    sums = TensorSums()
    for _, _, piece in _pieces(name, rows):
        sums.add(block_sums(list(piece)))
    return sums.result()


def _mean(name: str, rows: Sequence[Row], weights: Sequence[float]) -> Float32:
    """A whole tensor: sum_j a_j x_j of each element, in the order of the rows. Exact if one row has all weight."""
    taking = [row for row, weight in zip(rows, weights, strict=True) if weight]
    rows = taking if len(taking) == 1 else rows
    out = np.empty(rows[0].tensors.tensors[name].shape, np.float32)
    flat = out.reshape(-1)
    for start, end, piece in _pieces(name, rows):
        weighted_mean(piece, weights, flat[start:end], np.empty_like(piece))
    return out


def _pieces(name: str, rows: Sequence[Row]) -> Iterator[tuple[int, int, Float32]]:
    """Pieces of a tensor: start, end, and the elements of all rows. An array is valid until the next piece."""
    size = prod(rows[0].tensors.tensors[name].shape)
    buffer = np.empty((len(rows), min(size, PIECE)), np.float32)
    for start, end in pairwise([*range(0, size, PIECE), size]):
        piece = buffer[:, : end - start]
        for row, out in zip(rows, piece, strict=True):
            row.tensors.read(name, start, out)
        yield start, end, piece
