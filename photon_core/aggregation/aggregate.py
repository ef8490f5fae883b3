"""One pass from the sites' updates to the next global model, in memory that does not grow with the model.

Every byte of the updates, the old model and the optimizer's state is read once, piece by piece, and hashed on
the way; the pieces are small enough to stay in a core's cache while all the arithmetic is done on them. A few
threads read ahead and write behind; the order of the arithmetic, and so every bit of the result, is fixed.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.check import STEP_LIMIT, TOKEN_LIMIT, check_manifest
from photon_core.aggregation.combine import Combine, Given
from photon_core.aggregation.norms import Norms
from photon_core.aggregation.pairs import Pairs
from photon_core.aggregation.server_optimizer import OPTIMIZERS
from photon_core.errors import CorruptFile, PhotonError, UpdateRejected
from photon_core.layout import Run
from photon_core.shard_writer import ShardWriter
from photon_core.tensor_reader import Array, Piece, TensorReader
from photon_core.tensors import SHARD_BYTES, all_tensors
from photon_core.update.codec import Codec, get_codec
from photon_core.update.rounded import against
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.server import Server

Float32 = NDArray[np.float32]
CHUNK_ELEMENTS = 1 << 17  # 0.5 MiB of float32: a handful of such pieces fit a core's cache


@dataclass(frozen=True)
class Aggregate:
    """A round's result: written, not committed.

    Args:
        model, optimizer: the files, as round.json will name them.
        weights: each site's share of the mean.
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
    chunk_elements: int = CHUNK_ELEMENTS,
    max_shard_bytes: int = SHARD_BYTES,
    token_limit: int = TOKEN_LIMIT,
    step_limit: int = STEP_LIMIT,
    threads: int | None = None,
    folders: Mapping[str, str] | None = None,
    shares: Mapping[str, float] | None = None,
    into: str | None = None,
    write: bool = True,
) -> Aggregate:
    """theta' = ServerOpt(theta, token-weighted mean of theta_k): writes round t's model and optimizer shards.

    The caller commits round.json; until then the files are litter.

    Args:
        run, t: the round; the sites started from round t-1's model.
        updates: each site's committed update.
        server: the server optimizer and its numbers.
        chunk_elements: elements of a piece; no bit of the model depends on it.
        max_shard_bytes: size of the files.
        token_limit, step_limit: most tokens and local steps that a site can have trained in a round.
        threads: that read ahead and write behind; 0 for none.
        folders: where updates are that are not at their site's place.
        shares: what each update is multiplied by, theta getting what is left to 1; as the server says if left out.
        into: folder of the result; round t's if left out.
        write: whether there shall be files; without, only the norms are worked out.

    Raises:
        UpdateRejected: one site's update is bad; drop that site and call again.
        CorruptFile: the old model or the optimizer's state is damaged.
    """
    base = run.round(t - 1)
    if base is None:
        raise PhotonError(f"round {t} cannot be aggregated: round {t - 1} is not committed")
    if not updates:
        raise PhotonError(f"round {t} cannot be aggregated: there are no updates")
    for site in sorted(updates):
        check_manifest(run, base, t, site, updates[site], token_limit, step_limit)
    if threads is None:
        threads = max(2, min(8, os.cpu_count() or 1))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads, "aggregate")) if threads else None
        ordered = {site: updates[site] for site in sorted(updates)}
        combine = Given(shares) if shares else Combine(server, ordered)
        places = {s: (folders or {}).get(s) or run.site_dir(t, s, u.attempt) for s, u in ordered.items()}
        target = (into or run.round_dir(t)) if write else None
        whole = _Pass(run, t, base, ordered, places, combine, server, target, pool, stack)
        return whole.work(chunk_elements, max_shard_bytes)


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
        target: str | None,
        pool: Executor | None,
        stack: ExitStack,
    ) -> None:
        self.run, self.t, self.server, self.pool, self.stack = run, t, server, pool, stack
        self.combine, self.target = combine, target
        self.tensors = all_tensors(base.model)
        if wrong := [name for name, tensor in self.tensors.items() if tensor.dtype != "F32"]:
            raise PhotonError(f"round {t - 1}'s tensor '{wrong[0]}' is not float32, as a global model must be")
        self.optimizer = OPTIMIZERS[server.optimizer]
        self.codecs = [against(get_codec(update.codec), update.base_dtype) for update in updates.values()]
        self.base = self._reader(run.round_dir(t - 1), base.model)
        self.state = self._reader(run.round_dir(t - 1), base.optimizer if self.optimizer.state else [])
        self.sites = {site: self._reader(folders[site], update.files) for site, update in updates.items()}

    def work(self, chunk_elements: int, max_shard_bytes: int) -> Aggregate:
        model = self._writer("model/", self.tensors, max_shard_bytes)
        kept = {name: self._state_writer(name, max_shard_bytes) for name in self.optimizer.state}
        block = max(codec.block for codec in self.codecs)  # of whole blocks, so that every codec can be cut
        chunk_elements = -(-chunk_elements // block) * block
        pieces = [piece for name in model.order for piece in self.base.pieces(name, chunk_elements)]
        norms = Norms(list(self.sites))
        pairs = Pairs(list(self.sites), sum(piece.end - piece.start for piece in pieces))
        thetas = self._stream(self.base, pieces)
        states = [self._state_stream(name, pieces) for name in kept]
        updates = [
            self._parameters(site, codec, pieces) for site, codec in zip(self.sites, self.codecs, strict=True)
        ]
        buffers = [np.empty(max((p.end - p.start for p in pieces), default=0), np.float32) for _ in range(4)]
        with np.errstate(all="ignore"):  # what is not finite is found, and the site named
            for piece, theta in zip(pieces, thetas, strict=True):
                mean, g, scratch, result = (buffer[: theta.size] for buffer in buffers)
                state = [next(stream) for stream in states]
                parameters = [decode(theta) for decode in map(next, updates)]
                self.combine(theta, parameters, mean, scratch)
                np.subtract(theta, mean, out=g)
                norms.add(piece.name, theta, parameters, g, scratch)
                pairs.add(theta, parameters)
                self.optimizer.step(theta, mean, g, state, self.server, result)
                norms.add_model(piece.name, result, theta, scratch)
                model.write(piece.name, result)
                for (name, writer), values in zip(kept.items(), state, strict=True):
                    writer.write(f"{name}.{piece.name}", values)
        self._verify()
        self.combine.verify(norms.result())
        files = [entry for writer in kept.values() for entry in writer.close()]
        return Aggregate(model.close(), files, self.combine.weights, norms.result() | pairs.result())

    def _reader(self, folder: str, entries: Sequence[FileEntry]) -> TensorReader:
        return self.stack.enter_context(TensorReader(self.run.store, folder, entries, self.pool))

    def _writer(self, stem: str, tensors: Mapping[str, TensorEntry], max_bytes: int) -> "ShardWriter | _NoWriter":
        if self.target is None:
            return _NoWriter(tensors)
        writer = ShardWriter(self.run.store, self.target, stem, tensors, max_bytes, self.pool)
        return self.stack.enter_context(writer)

    def _stream(self, reader: TensorReader, pieces: Sequence[Piece], prefix: str = "") -> Iterator[Array]:
        return self.stack.enter_context(closing(reader.stream(pieces, prefix)))

    def _parameters(
        self, site: str, codec: Codec, pieces: Sequence[Piece]
    ) -> Iterator[Callable[[Float32], Float32]]:
        """For every piece, what gives the site's parameters of it when given theta's."""
        encoded_pieces = [Piece(p.name, codec.position(p.start), codec.position(p.end)) for p in pieces]
        size = 0 if codec.lossless else max((p.end - p.start for p in pieces), default=0)
        buffer = np.empty(size, np.float32)
        for encoded in _blame(site, self._stream(self.sites[site], encoded_pieces)):

            def decode(theta: Float32, encoded: Array = encoded) -> Float32:
                out = encoded.view(np.float32) if codec.lossless else buffer[: theta.size]
                try:
                    return codec.decode(theta, encoded, out)
                except CorruptFile as error:
                    raise UpdateRejected(site, str(error)) from error

            yield decode

    def _state_writer(self, name: str, max_bytes: int) -> "ShardWriter | _NoWriter":
        tensors = {f"{name}.{tensor}": entry for tensor, entry in self.tensors.items()}
        return self._writer(f"optimizer/{name}-", tensors, max_bytes)

    def _state_stream(self, name: str, pieces: Sequence[Piece]) -> Iterator[Array]:
        """The optimizer's state; what it starts at when no round has kept it yet."""
        wanted = {f"{name}.{tensor}": entry for tensor, entry in self.tensors.items()}
        kept = {tensor: self.state.tensors[tensor] for tensor in wanted if tensor in self.state.tensors}
        if not kept:
            start = np.float32(self.optimizer.state[name](self.server))
            return (np.full(piece.end - piece.start, start, np.float32) for piece in pieces)
        if kept != wanted:
            raise CorruptFile(f"round {self.t - 1}'s optimizer state '{name}' does not fit its model")
        return self._stream(self.state, pieces, f"{name}.")

    def _verify(self) -> None:
        """Every hash, also of files that were not read in the order of their bytes."""
        for site, reader in self.sites.items():
            try:
                reader.verify()
            except CorruptFile as error:
                raise UpdateRejected(site, str(error)) from error
        self.base.verify()
        self.state.verify()


class _NoWriter:
    """Stands for a ShardWriter where only norms are wanted."""

    def __init__(self, tensors: Mapping[str, TensorEntry]) -> None:
        self.order = sorted(tensors)

    def write(self, name: str, values: Array) -> None:
        pass

    def close(self) -> list[FileEntry]:
        return []


def _blame(site: str, stream: Iterator[Array]) -> Iterator[Array]:
    """The stream; what is wrong with its bytes is this site's update being bad."""
    try:
        yield from stream
    except CorruptFile as error:
        raise UpdateRejected(site, str(error)) from error
