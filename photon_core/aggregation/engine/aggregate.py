"""One pass from the sites' updates to the next global model, in memory that does not grow with model or sites.

Every byte of the updates, the old model and the optimizer's state is read once, piece by piece, and hashed on
the way. Threads work on several pieces side by side (from a disk, they also read them; from a server, others read
ahead) and write behind; the order of the arithmetic on every element, and so every bit of the model, is fixed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.blame import blame, blamed
from photon_core.aggregation.checks import STEP_LIMIT, TOKEN_LIMIT, check_manifest
from photon_core.aggregation.engine.arithmetic import Arithmetic
from photon_core.aggregation.engine.norms import Norms, Pairs
from photon_core.aggregation.engine.resume import Finished
from photon_core.aggregation.engine.threads import Threads
from photon_core.aggregation.server_optimizer import OPTIMIZERS
from photon_core.aggregation.weights import Combine, Given
from photon_core.errors import CorruptFile, PhotonError
from photon_core.run.run import Run
from photon_core.store.open_ranges import OpenRanges
from photon_core.tensors.reader import Array, Load, Piece, Spans, TensorReader, cut, span
from photon_core.tensors.shards import all_tensors, shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs.lossless import against
from photon_core.update.codecs.registry import Codec, get_codec
from schemas.manifests import FileEntry, PartialManifest, RoundManifest, ShardRecord, TensorEntry, UpdateManifest
from schemas.sections.aggregation import Aggregation
from schemas.sections.server import Server

Float32 = NDArray[np.float32]
LEAST_PIECE, MOST_PIECE = 1 << 15, 1 << 18  # elements of a site
CACHED = 1 << 21  # elements of a piece from a disk, all sites
MOST_REMOTE_PIECE = 1 << 20  # elements of one request to a server


@dataclass(frozen=True)
class Aggregate:
    """A round's result: written, not committed.

    Args:
        model, optimizer: the files, as round.json will name them.
        weights: of the sites' objectives, which sum to 1 (aggregation/combine.py).
        norms: pseudo_gradient_norm, model_norm, step_norm (of the new model - theta), and for every site
            delta_norm/<site> (of theta - theta_k) and cosine/<site> (of that with the mean pseudo-gradient; 0
            where one of them is 0); of at most 16 sites, cosine_pair/<site>/<site>.
        partials: partial.json -> its hash, of the regions' means that were combined (aggregation/tree.py).
    """

    model: list[FileEntry]
    optimizer: list[FileEntry]
    weights: dict[str, float]
    norms: dict[str, float] = field(default_factory=dict)
    partials: dict[str, str] = field(default_factory=dict)


def aggregate(
    run: Run,
    t: int,
    updates: Mapping[str, UpdateManifest],
    server: Server,
    *,
    settings: Aggregation | None = None,
    token_limit: int = TOKEN_LIMIT,
    step_limit: int = STEP_LIMIT,
    chunk_elements: int | None = None,
    max_shard_bytes: int | None = None,
    threads: int | None = None,
    folders: Mapping[str, str] | None = None,
    shares: Mapping[str, float] | None = None,
    lowered: float = 1.0,
    into: str | None = None,
    write: bool = True,
) -> Aggregate:
    """theta' = ServerOpt(theta, token-weighted mean of theta_k): writes round t's model and optimizer shards.

    The caller commits round.json; until then the files are litter. Called again with the same inputs after an
    interruption, it takes the shards that it had finished.

    Args:
        run, t: the round; the sites started from round t-1's model.
        updates: each site's committed update.
        server: the server optimizer and its numbers.
        settings: size of the files, memory, connections.
        token_limit, step_limit: most tokens and local steps that a site can have trained in a round.
        chunk_elements: of a piece, instead of what the memory allows; no bit of the model depends on it.
        max_shard_bytes: size of the files, instead of the settings'.
        threads: that read ahead, of those that compute, and of those that write behind; 0 for none.
        folders: where updates are that are not at their site's place.
        shares: what each update is multiplied by, theta getting what is left to 1; as the server says if left out.
        lowered: what the guard has multiplied server.lr by already; the state is lowered with it.
        into: folder of the result; round t's if left out.
        write: whether there shall be files; without, only the norms are worked out.

    Raises:
        UpdateRejected: one site's update is bad; drop that site and call again.
        Doubt: it cannot be read, which may be the machine's fault or the store's.
        CorruptFile: the old model or the optimizer's state is damaged.
    """
    base = run.round(t - 1)
    if base is None:
        raise PhotonError(f"round {t} cannot be aggregated: round {t - 1} is not committed")
    if not updates:
        raise PhotonError(f"round {t} cannot be aggregated: there are no updates")
    for site in sorted(updates):
        check_manifest(run, base, t, site, updates[site], token_limit, step_limit)
    settings = settings or Aggregation()
    with ExitStack() as stack:
        ordered = {site: updates[site] for site in sorted(updates)}
        combine = Given(shares) if shares else Combine(server, ordered)
        places = {s: (folders or {}).get(s) or run.site_dir(t, s, u.attempt) for s, u in ordered.items()}
        target = (into or run.round_dir(t)) if write else None
        team = Threads.start(stack, run.store.is_local, settings, threads)
        shard_bytes = max_shard_bytes or settings.shard_bytes
        one_pass = _Pass(run, t, base, ordered, places, combine, server, lowered, target, team, shard_bytes, stack)
        return one_pass.work(chunk_elements or one_pass.piece_elements(settings.memory_bytes))


class _Done(NamedTuple):
    """A piece, computed."""

    sums: list[NDArray[np.float64]]
    gram: NDArray[np.float64]
    results: list[Float32]  # the new model, and the optimizer's state


class _Pass:
    """The readers, the writers and the one loop between them. The sites are in the order of their names."""

    def __init__(
        self,
        run: Run,
        t: int,
        base: RoundManifest,
        updates: dict[str, UpdateManifest],
        folders: dict[str, str],
        combine: Combine,
        server: Server,
        lowered: float,
        target: str | None,
        team: Threads,
        shard_bytes: int,
        stack: ExitStack,
    ) -> None:
        self.run, self.t, self.server, self.shard_bytes = run, t, server, shard_bytes
        self.combine, self.target, self.team, self.stack = combine, target, team, stack
        self.tensors = all_tensors(base.model)
        if wrong := [name for name, tensor in self.tensors.items() if tensor.dtype != "F32"]:
            raise PhotonError(f"round {t - 1}'s tensor '{wrong[0]}' is not float32, as a global model must be")
        optimizer = OPTIMIZERS[server.optimizer]
        self.codecs = {
            site: against(get_codec(u.codec, ours=isinstance(u, PartialManifest)), u.base_dtype)
            for site, u in updates.items()
        }
        self.align = max(codec.block for codec in self.codecs.values())  # so that every codec can be cut
        self.arithmetic = Arithmetic(self.codecs, combine, optimizer, server, lowered)
        self.prefixes = ["", *(f"{state}." for state in optimizer.state)]
        self.opened = OpenRanges()
        self.base = self._reader(run.files_dir(t - 1), base.model)
        self.state = self._reader(run.files_dir(t - 1), base.optimizer if optimizer.state else [])
        self.sites: dict[str, TensorReader] = {}
        for site, update in updates.items():
            with blame(site):
                self.sites[site] = self._reader(folders[site], update.files)
        self.together = 0  # bytes of an update's small pieces that are read in one request
        self.finished = None
        if target == run.round_dir(t):
            shaping = {"shard_bytes": shard_bytes, "shares": combine.shares, "lowered": lowered}
            self.finished = Finished(run, t, target, base, updates, server, **shaping)

    def work(self, piece_elements: int) -> Aggregate:
        plans = [shard_plan(self._like(prefix), self.shard_bytes, self.align) for prefix in self.prefixes]
        piece_elements = -(-piece_elements // self.align) * self.align
        self.together = 4 * piece_elements
        shards = list(zip(*plans, strict=True))  # the model's, and the same of every state
        spans = [[(name, *span(part)) for name, part in shard.items()] for shard in plans[0]]

        def pieces(number: int) -> Iterator[Piece]:
            """Of a shard; made when they are wanted: a list for each site would grow with both sites and model."""
            for name, start, end in spans[number]:
                yield from cut(name, start, end, piece_elements)

        lengths = [end - start for shard in spans for _, start, end in shard]
        pairs = Pairs(list(self.sites), sum(lengths))
        count = 2 * len(self.sites) + 3
        found = self._finished(shards, count + pairs.gram.size)
        writers = [
            self._writer(prefix, {number: record.files[n] for number, record in found.items()})
            for n, prefix in enumerate(self.prefixes)
        ]
        missing = [number for number in range(len(shards)) if number not in found]
        turns = ((number, pairs.turn()) for number in range(len(shards)) for _ in pieces(number))
        calls = self._calls(
            lambda: (piece for number in missing for piece in pieces(number)),
            (turn for number, turn in turns if number not in found),
            min(piece_elements, max(lengths, default=0)),
        )
        results = self.stack.enter_context(closing(self.team.results(calls, self._give_up)))
        sums = {number: record.sums for number, record in found.items()}
        unrecorded: list[int] = []
        for number in missing:
            norms, gram = Norms(list(self.sites)), np.zeros_like(pairs.gram)
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
        self._verify([plans[0][number] for number in missing] if found else None)
        total = Norms(list(self.sites))
        for number, (shard, *_) in enumerate(shards):
            total.add(next(iter(shard)), sums[number][:count])
            pairs.gram += np.reshape(sums[number][count:], pairs.gram.shape)
        self.combine.verify(total.result())
        model, *states = [writer.close() for writer in writers]
        self._record(unrecorded, shards, writers, sums)
        optimizer = [entry for files in states for entry in files]
        return Aggregate(model, optimizer, self.combine.weights, total.result() | pairs.result())

    def piece_elements(self, memory_bytes: int) -> int:
        """Elements of a piece, so that all that are in memory at a time fit into so many bytes."""
        streams = len(self.sites) + len(self.prefixes)
        held = self.team.ahead + self.team.side_by_side + 1
        most = MOST_REMOTE_PIECE
        if self.run.store.is_local:
            most = max(LEAST_PIECE, min(MOST_PIECE, 1 << (CACHED // streams).bit_length() - 1))
        block = self.arithmetic.block
        fit = max(block, min(most, memory_bytes // (4 * streams * held)))
        return fit - fit % block

    def _calls(
        self, pieces: Callable[[], Iterator[Piece]], looked: Iterator[bool], largest: int
    ) -> Iterator[Callable[[], _Done]]:
        """The work on every piece; `largest` elements at most."""
        thetas = self._loads(self.base, pieces())
        states = [self._state_loads(prefix, pieces()) for prefix in self.prefixes[1:]]
        updates = [
            blamed(site, self._loads(reader, map(partial(_encoded, self.codecs[site]), pieces())))
            for site, reader in self.sites.items()
        ]
        results = [np.empty(largest, np.float32) for _ in range(self.team.side_by_side + 1)]
        for number, (piece, theta, look) in enumerate(zip(pieces(), thetas, looked, strict=True)):
            state = [next(loads) for loads in states]
            encoded = [next(loads) for loads in updates]
            out = results[number % len(results)][: piece.end - piece.start]
            yield partial(self._compute, piece.name, theta, encoded, state, out, look)

    def _give_up(self) -> None:
        """Nobody waits for what the piece that failed has not read."""
        for reader in (self.base, self.state, *self.sites.values()):
            reader.give_up()

    def _compute(
        self, tensor: str, theta: Load, encoded: Sequence[Load], state: Sequence[Load], out: Float32, look: bool
    ) -> _Done:
        arrays = theta(), [load() for load in encoded], [load() for load in state]
        return _Done(*self.arithmetic.work(tensor, *arrays, out, look), [out, *arrays[2]])

    def _finished(
        self, shards: Sequence[tuple[Mapping[str, TensorEntry], ...]], count: int
    ) -> dict[int, ShardRecord]:
        """What an interrupted pass has left. A model of one file is made again sooner than looked for."""
        if self.finished is None or len(shards) == 1:
            return {}
        found = ((number, self.finished.find(number, parts, count)) for number, parts in enumerate(shards))
        return {number: record for number, record in found if record}

    def _record(
        self,
        numbers: Sequence[int],
        shards: Sequence[tuple[Mapping[str, TensorEntry], ...]],
        writers: Sequence["ShardWriter | _NoWriter"],
        sums: Mapping[int, Sequence[float]],
    ) -> list[int]:
        """Write records of those shards whose inputs have all proved to be whole; return the others."""
        if self.finished is None or len(shards) == 1:
            return []
        left = []
        for number in numbers:
            model, *states = shards[number]
            inputs = [(self.base, _spans(model)), *((self.state, _spans(state)) for state in states)]
            inputs += [(reader, _spans(model, self.codecs[site])) for site, reader in self.sites.items()]
            whole = all(reader.verified(spans) for reader, spans in inputs)
            if not whole or not np.isfinite(sums[number]).all():  # JSON has no infinity: nobody's pairs are noted
                left.append(number)
                continue
            files = [writer.shard(number) for writer in writers]
            for writer in writers:
                writer.keep(number)  # first: a record whose answer is lost may be there, and another may go by it
            self.finished.keep(number, files, sums[number])
        return left

    def _like(self, prefix: str) -> dict[str, TensorEntry]:
        return {prefix + name: tensor for name, tensor in self.tensors.items()}

    def _reader(self, folder: str, entries: Sequence[FileEntry]) -> TensorReader:
        reader = TensorReader(self.run.store, folder, entries, self.team.readers, self.opened)
        return self.stack.enter_context(reader)

    def _writer(self, prefix: str, written: Mapping[int, FileEntry]) -> "ShardWriter | _NoWriter":
        if self.target is None:
            return _NoWriter()
        writer = ShardWriter(
            self.run.store,
            self.target,
            f"optimizer/{prefix[:-1]}-" if prefix else "model/",
            self._like(prefix),
            self.shard_bytes,
            self.team.writers,
            align=self.align,
            written=written,
        )
        return self.stack.enter_context(writer)

    def _loads(self, reader: TensorReader, pieces: Iterable[Piece], prefix: str = "") -> Iterator[Load]:
        loads = reader.loads(pieces, prefix, self.team.ahead, self.team.side_by_side, self.together)
        return self.stack.enter_context(closing(loads))

    def _state_loads(self, prefix: str, pieces: Iterable[Piece]) -> Iterator[Load]:
        """The optimizer's state; what it starts at when no round has kept it yet."""
        wanted = self._like(prefix)
        kept = {tensor: self.state.tensors[tensor] for tensor in wanted if tensor in self.state.tensors}
        if not kept:
            start = np.float32(self.arithmetic.optimizer.state[prefix[:-1]](self.server))
            return (partial(np.full, piece.end - piece.start, start, np.float32) for piece in pieces)
        if kept != wanted:
            raise CorruptFile(f"round {self.t - 1}'s optimizer state '{prefix[:-1]}' does not fit its model")
        return self._loads(self.state, pieces, prefix)

    def _verify(self, shards: Sequence[Mapping[str, TensorEntry]] | None) -> None:
        """Every hash, also of files that were not read in the order of their bytes.

        Args:
            shards: only of the files that these shards were made from; all if None.
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
    """The piece of the encoded tensor."""
    return Piece(piece.name, codec.position(piece.start), codec.position(piece.end))


def _spans(parts: Mapping[str, TensorEntry], codec: Codec | None = None) -> Spans:
    """Where these parts of the model are, or where an update's codec has them."""
    spans = {name: span(part) for name, part in parts.items()}
    return {n: (codec.position(a), codec.position(b)) for n, (a, b) in spans.items()} if codec else spans


class _NoWriter:
    """Stands for a ShardWriter where only norms are wanted."""

    def write(self, name: str, values: Array) -> None:
        pass

    def keep(self, number: int) -> None:
        pass

    def shard(self, number: int) -> FileEntry:
        raise ValueError("nothing is written")

    def close(self) -> list[FileEntry]:
        return []
