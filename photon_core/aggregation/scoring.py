"""The first pass over a key layer: inner products, for scores and for cosines of residuals.

The threads of a pass stream all rows of a pool once, piece by piece, and hash them. Memory does not grow with the
number of rows or the size of the layer. The bits of the sums do not depend on pieces or threads.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np

from photon_core.aggregation.blame import blame, blamed
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits
from photon_core.aggregation.engine.threads import Threads
from photon_core.aggregation.sums import BLOCK, Float64, Sums, TensorSums, block_sums
from photon_core.errors import CorruptFile
from photon_core.store.open_ranges import OpenRanges
from photon_core.store.store import Store
from photon_core.tensors.reader import Load, Piece, TensorReader, cut
from schemas.manifests import FileEntry

MOST_PIECE, MOST_REMOTE_PIECE = 1 << 17, 1 << 20  # elements of a row
DTYPE = "F32"

Shapes = Mapping[str, tuple[int, ...]]


class Row(NamedTuple):
    """One row of a pool, in a store.

    Args:
        store, folder: place of the files.
        files: files that hold the key layer and nothing else; paths relative to the folder.
        member: name of the member that wrote them, for errors; empty for the federation's files.
    """

    store: Store
    folder: str
    files: Sequence[FileEntry]
    member: str = ""


def layer_sums(shapes: Shapes, rows: Sequence[Row], queries: int = 1, limits: Limits = DEFAULT_LIMITS) -> Sums:
    """Inner products of one key layer of several nodes.

    Args:
        shapes: shapes of the key layer's parameters, by name.
        rows: rows of the pool, which may be in several stores.
        queries: number of first rows whose products with all rows are computed.
        limits: limits of the pass.

    Raises:
        UpdateRejected: a member's files are damaged, hold other tensors, or hold NaN or infinity.
        Doubt: a member's files cannot be read; the cause may be this machine or the store.
        CorruptFile: the federation's files are damaged, as above.
    """
    with ExitStack() as stack:
        team = Threads.start(stack, all(row.store.is_local for row in rows), limits)
        return _Pool(shapes, rows, queries, team, stack).sums(limits)


class _Pool:
    """The readers of all rows, and the loop over them."""

    def __init__(self, shapes: Shapes, rows: Sequence[Row], queries: int, team: Threads, stack: ExitStack) -> None:
        self._shapes = {name: shapes[name] for name in sorted(shapes)}
        self._rows, self._queries, self._team, self._stack = rows, queries, team, stack
        self._readers = list[TensorReader]()
        opened = OpenRanges()
        for row in rows:
            with _at_fault(row):
                reader = TensorReader(row.store, row.folder, row.files, team.readers, opened)
                self._readers.append(stack.enter_context(reader))
                self._check(row, reader)

    def sums(self, limits: Limits) -> Sums:
        elements = self._piece_elements(limits)
        results = self._stack.enter_context(closing(self._team.results(self._calls(elements), self._cancel)))
        tensors = {name: TensorSums() for name, shape in self._shapes.items() if math.prod(shape)}
        for piece, found in zip(self._pieces(elements), results, strict=True):
            tensors[piece.name].add(found)
        for row, reader in zip(self._rows, self._readers, strict=True):
            with _at_fault(row):
                reader.verify()
        size = sum(math.prod(shape) for shape in self._shapes.values())
        return Sums.of((tensor.result() for tensor in tensors.values()), size)

    def _check(self, row: Row, reader: TensorReader) -> None:
        """Refuse files that do not hold the key layer, before a byte of them is read."""
        found = reader.tensors
        for name in sorted(found.keys() | self._shapes.keys()):
            tensor = found.get(name)
            if tensor is None or (tensor.dtype, tensor.shape) != (DTYPE, self._shapes.get(name)):
                what = "is missing" if tensor is None else "is not one of it, or has another shape or dtype"
                where = row.store.locate(row.folder)
                raise CorruptFile(f"a key layer in {where} is not the model's: tensor '{name[:200]}' {what}")

    def _piece_elements(self, limits: Limits) -> int:
        """Elements of a piece: whole blocks, such that all pieces in memory fit into the limit."""
        held = self._team.ahead + self._team.side_by_side + 1
        most = MOST_REMOTE_PIECE if self._team.readers else MOST_PIECE
        fit = limits.piece or min(most, limits.memory_bytes // (4 * len(self._rows) * held))
        return max(1, fit // BLOCK) * BLOCK

    def _pieces(self, elements: int) -> Iterator[Piece]:
        for name, shape in self._shapes.items():
            yield from cut(name, 0, math.prod(shape), elements)

    def _calls(self, elements: int) -> Iterator[Callable[[], Float64]]:
        """A call for every piece, which computes its sums."""
        streams = [
            self._stream(row, reader, elements) for row, reader in zip(self._rows, self._readers, strict=True)
        ]
        for piece in self._pieces(elements):
            yield partial(self._compute, piece.name, [next(stream) for stream in streams])

    def _stream(self, row: Row, reader: TensorReader, elements: int) -> Iterator[Load]:
        team = self._team
        loads = reader.loads(
            self._pieces(elements), ahead=team.ahead, keep=team.side_by_side, together=4 * elements
        )
        self._stack.enter_context(closing(loads))
        return blamed(row.member, loads) if row.member else loads

    def _compute(self, tensor: str, loads: Sequence[Load]) -> Float64:
        found = block_sums([load() for load in loads], self._queries)
        finite = np.isfinite(found[:, -1]).all(axis=0)
        if not finite.all():
            row = self._rows[int(np.argmin(finite))]
            where = row.store.locate(row.folder)
            with _at_fault(row):
                raise CorruptFile(f"tensor '{tensor}' of the key layer in {where} holds NaN or Inf")
        return found

    def _cancel(self) -> None:
        """Cancel the reads that a failed piece no longer needs."""
        for reader in self._readers:
            reader.cancel()


def _at_fault(row: Row) -> AbstractContextManager[None]:
    return blame(row.member) if row.member else nullcontext()
