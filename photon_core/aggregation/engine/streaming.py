"""One pass from the sites' updates to the next global model, in memory that does not grow with model or sites.

Every byte of the updates, the old model and the optimizer's state is read once, piece by piece, and hashed while
read. Threads compute several pieces in parallel, and other threads write the results in the background. On a local
disk the computing threads also read; from a server, further threads prefetch. The order of the arithmetic on every
element is fixed, and so is every bit of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.blame import blame, blamed
from photon_core.aggregation.engine.arithmetic import Arithmetic
from photon_core.aggregation.engine.inputs import Limits, Pass, Result
from photon_core.aggregation.engine.norms import Norms, Pairs
from photon_core.aggregation.engine.resume import ShardRecords
from photon_core.aggregation.engine.threads import Threads
from photon_core.errors import CorruptFile, PhotonError
from photon_core.store.open_ranges import OpenRanges
from photon_core.tensors.reader import Array, Load, Piece, Spans, TensorReader, cut, span
from photon_core.tensors.shards import all_tensors, shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs.registry import Codec
from schemas.manifests import FileEntry, ShardRecord, TensorEntry

Float32 = NDArray[np.float32]
LEAST_PIECE, MOST_PIECE = 1 << 15, 1 << 18  # elements of a site
CACHED = 1 << 21  # elements of a piece from a disk, over all sites
MOST_REMOTE_PIECE = 1 << 20  # elements of one request to a server


def run_pass(one: Pass, limits: Limits) -> Result:
    """Write the new model, and the optimizer's state, into the pass's folder.

    The files are orphans until a manifest names them. A pass with the same inputs after an interruption reuses the
    finished shards, if the folder is the round's own.

    Raises:
        UpdateRejected: one member's update is bad; drop it and call again.
        Doubt: one member's update cannot be read; the member, the machine or the store may be at fault.
        NotFinite: the mean is not finite, and the pass does not inspect single members.
        CorruptFile: the old model or the optimizer's state is damaged.
    """
    with ExitStack() as stack:
        return _Work(one, limits, Threads.start(stack, one.run.store.is_local, limits), stack).work()


class _Done(NamedTuple):
    """A computed piece."""

    sums: list[NDArray[np.float64]]
    gram: NDArray[np.float64]
    results: list[Float32]  # the new model, and the optimizer's state


class _Work:
    """The readers, the writers and the loop between them."""

    def __init__(self, one: Pass, limits: Limits, team: Threads, stack: ExitStack) -> None:
        self.one, self.limits, self.team, self.stack = one, limits, team, stack
        before = one.base.round
        self.tensors = all_tensors(one.base.model)
        if wrong := [name for name, tensor in self.tensors.items() if tensor.dtype != "F32"]:
            raise PhotonError(f"round {before}'s tensor '{wrong[0]}' is not float32, as a global model must be")
        self.codecs = {name: source.codec for name, source in one.sources.items()}
        self.align = max(codec.block for codec in self.codecs.values())  # pieces are whole blocks of every codec
        self.arithmetic = Arithmetic(one, self.codecs)
        state = self.arithmetic.optimizer.state
        self.prefixes = ["", *(f"{name}." for name in state)]
        self.opened = OpenRanges()
        files = one.run.files_dir(one.t - 1)
        self.base = self._reader(files, one.base.model)
        self.state = self._reader(files, one.base.optimizer if state else [])
        self.sites: dict[str, TensorReader] = {}
        for name, source in one.sources.items():
            with blame(name):
                self.sites[name] = self._reader(source.folder, source.update.files)
        self.looked = list(self.sites) if one.look else []
        self.together = 0  # bytes of an update's small pieces that are read in one request
        self.records = None
        if one.folder == one.run.round_dir(one.t):
            self.records = ShardRecords(one, limits.shard_bytes)

    def work(self) -> Result:
        plans = [shard_plan(self._like(prefix), self.limits.shard_bytes, self.align) for prefix in self.prefixes]
        piece_elements = -(-(self.limits.piece or self._piece_elements()) // self.align) * self.align
        self.together = 4 * piece_elements
        shards = list(zip(*plans, strict=True))  # the model's, and the same of every state
        spans = [[(name, *span(part)) for name, part in shard.items()] for shard in plans[0]]

        def pieces(number: int) -> Iterator[Piece]:
            """The pieces of a shard. A generator: a list for each site would grow with both sites and model."""
            for name, start, end in spans[number]:
                yield from cut(name, start, end, piece_elements)

        lengths = [end - start for shard in spans for _, start, end in shard]
        pairs = Pairs(self.looked, sum(lengths))
        count = Norms(self.looked).sums.size
        finished = self._finished(shards, count + pairs.gram.size)
        writers = [
            self._writer(prefix, plans[n], {number: record.files[n] for number, record in finished.items()})
            for n, prefix in enumerate(self.prefixes)
        ]
        missing = [number for number in range(len(shards)) if number not in finished]
        turns = ((number, pairs.turn()) for number in range(len(shards)) for _ in pieces(number))
        calls = self._calls(
            lambda: (piece for number in missing for piece in pieces(number)),
            (turn for number, turn in turns if number not in finished),
            min(piece_elements, max(lengths, default=0)),
        )
        results = self.stack.enter_context(closing(self.team.results(calls, self._cancel)))
        sums = {number: record.sums for number, record in finished.items()}
        unrecorded: list[int] = []
        for number in missing:
            norms, gram = Norms(self.looked), np.zeros_like(pairs.gram)
            for piece in pieces(number):
                done = next(results)
                gram += done.gram
                for block in done.sums:
                    norms.add(piece.name, block)
                for prefix, writer, values in zip(self.prefixes, writers, done.results, strict=True):
                    writer.write(prefix + piece.name, values)
            sums[number] = [*norms.sums.tolist(), *gram.ravel().tolist()]
            unrecorded = self._record(unrecorded, shards, writers, sums)
            unrecorded.append(number)
        self._verify([plans[0][number] for number in missing] if finished else None)
        total = Norms(self.looked)
        for number, (shard, *_) in enumerate(shards):
            total.add(next(iter(shard)), sums[number][:count])
            pairs.gram += np.reshape(sums[number][count:], pairs.gram.shape)
        model, *states = [writer.close() for writer in writers]
        self._record(unrecorded, shards, writers, sums)
        optimizer = [entry for files in states for entry in files]
        return Result(model, optimizer, total.result() | pairs.result())

    def _piece_elements(self) -> int:
        """Elements of a piece, so that all pieces in memory at a time fit into the limit."""
        streams = len(self.sites) + len(self.prefixes)
        held = self.team.ahead + self.team.side_by_side + 1
        most = MOST_REMOTE_PIECE
        if self.one.run.store.is_local:
            most = max(LEAST_PIECE, min(MOST_PIECE, 1 << (CACHED // streams).bit_length() - 1))
        block = self.arithmetic.block
        fit = max(block, min(most, self.limits.memory_bytes // (4 * streams * held)))
        return fit - fit % block

    def _calls(
        self, pieces: Callable[[], Iterator[Piece]], paired: Iterator[bool], largest: int
    ) -> Iterator[Callable[[], _Done]]:
        """The computation of every piece, of at most `largest` elements."""
        thetas = self._loads(self.base, pieces())
        states = [self._state_loads(prefix, pieces()) for prefix in self.prefixes[1:]]
        updates = [
            blamed(site, self._loads(reader, map(partial(_encoded, self.codecs[site]), pieces())))
            for site, reader in self.sites.items()
        ]
        results = [np.empty(largest, np.float32) for _ in range(self.team.side_by_side + 1)]
        for number, (piece, theta, pairs) in enumerate(zip(pieces(), thetas, paired, strict=True)):
            state = [next(loads) for loads in states]
            encoded = [next(loads) for loads in updates]
            out = results[number % len(results)][: piece.end - piece.start]
            yield partial(self._compute, piece, theta, encoded, state, out, pairs)

    def _cancel(self) -> None:
        """Cancel all reads: a piece has failed, and no thread may wait for what it has not read."""
        for reader in (self.base, self.state, *self.sites.values()):
            reader.cancel()

    def _compute(
        self, piece: Piece, theta: Load, encoded: Sequence[Load], state: Sequence[Load], out: Float32, pairs: bool
    ) -> _Done:
        arrays = theta(), [load() for load in encoded], [load() for load in state]
        return _Done(*self.arithmetic.work(piece, *arrays, out, pairs), [out, *arrays[2]])

    def _finished(
        self, shards: Sequence[tuple[Mapping[str, TensorEntry], ...]], count: int
    ) -> dict[int, ShardRecord]:
        """The records of an interrupted pass. A model of one file has none: computing it again is faster."""
        if self.records is None or len(shards) == 1:
            return {}
        records = ((number, self.records.find(number, parts, count)) for number, parts in enumerate(shards))
        return {number: record for number, record in records if record}

    def _record(
        self,
        numbers: Sequence[int],
        shards: Sequence[tuple[Mapping[str, TensorEntry], ...]],
        writers: Sequence["ShardWriter | _NoWriter"],
        sums: Mapping[int, Sequence[float]],
    ) -> list[int]:
        """Write records of the shards whose inputs are all verified; return the numbers of the other shards."""
        if self.records is None or len(shards) == 1:
            return []
        left = []
        for number in numbers:
            model, *states = shards[number]
            inputs = [(self.base, _spans(model)), *((self.state, _spans(state)) for state in states)]
            inputs += [(reader, _spans(model, self.codecs[site])) for site, reader in self.sites.items()]
            whole = all(reader.verified(spans) for reader, spans in inputs)
            if not whole or not np.isfinite(sums[number]).all():  # JSON has no infinity
                left.append(number)
                continue
            files = [writer.shard(number) for writer in writers]
            for writer in writers:
                writer.keep(number)  # first: the store may hold a record whose answer was lost, for others to use
            self.records.keep(number, files, sums[number])
        return left

    def _like(self, prefix: str) -> dict[str, TensorEntry]:
        return {prefix + name: tensor for name, tensor in self.tensors.items()}

    def _reader(self, folder: str, entries: Sequence[FileEntry]) -> TensorReader:
        reader = TensorReader(self.one.run.store, folder, entries, self.team.readers, self.opened)
        return self.stack.enter_context(reader)

    def _writer(
        self, prefix: str, plan: Sequence[Mapping[str, TensorEntry]], written: Mapping[int, FileEntry]
    ) -> "ShardWriter | _NoWriter":
        if self.one.folder is None:
            return _NoWriter()
        stem = f"optimizer/{prefix[:-1]}-" if prefix else f"model/{self.one.stem}"
        writer = ShardWriter(self.one.run.store, self.one.folder, stem, plan, self.team.writers, written)
        return self.stack.enter_context(writer)

    def _loads(self, reader: TensorReader, pieces: Iterable[Piece], prefix: str = "") -> Iterator[Load]:
        loads = reader.loads(pieces, prefix, self.team.ahead, self.team.side_by_side, self.together)
        return self.stack.enter_context(closing(loads))

    def _state_loads(self, prefix: str, pieces: Iterable[Piece]) -> Iterator[Load]:
        """The loads of the optimizer's state; of its initial values if no round has stored it yet."""
        expected = self._like(prefix)
        kept = {tensor: self.state.tensors[tensor] for tensor in expected if tensor in self.state.tensors}
        if not kept:
            start = np.float32(self.arithmetic.optimizer.state[prefix[:-1]](self.one.server))
            return (partial(np.full, piece.end - piece.start, start, np.float32) for piece in pieces)
        if kept != expected:
            raise CorruptFile(f"round {self.one.t - 1}'s optimizer state '{prefix[:-1]}' does not fit its model")
        return self._loads(self.state, pieces, prefix)

    def _verify(self, shards: Sequence[Mapping[str, TensorEntry]] | None) -> None:
        """Verify every hash, also of files that were not read in the order of their bytes.

        Args:
            shards: shards whose input files are verified; None for all files.
        """
        for parts in [None] if shards is None else shards:
            for site, reader in self.sites.items():
                with blame(site):
                    reader.verify(None if parts is None else _spans(parts, self.codecs[site]))
            self.base.verify(None if parts is None else _spans(parts))
            for prefix in self.prefixes[1:]:
                kept = {prefix + name: part for name, part in (parts or {}).items()}
                self.state.verify(None if parts is None else _spans(kept))


def _encoded(codec: Codec, piece: Piece) -> Piece:
    """The same piece of the encoded tensor."""
    return Piece(piece.name, codec.position(piece.start), codec.position(piece.end))


def _spans(parts: Mapping[str, TensorEntry], codec: Codec | None = None) -> Spans:
    """The ranges of these parts in the model, or in an update with this codec."""
    spans = {name: span(part) for name, part in parts.items()}
    return {n: (codec.position(a), codec.position(b)) for n, (a, b) in spans.items()} if codec else spans


class _NoWriter:
    """Replaces a ShardWriter in a pass that computes only norms."""

    def write(self, name: str, values: Array) -> None:
        pass

    def keep(self, number: int) -> None:
        pass

    def shard(self, _number: int) -> FileEntry:
        raise ValueError("nothing is written")

    def close(self) -> list[FileEntry]:
        return []
