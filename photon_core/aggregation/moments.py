"""The mean of the sites' optimizer moments, from which all sites go on in the next round.

It is of the same kind as that of the parameters: a bad site that a median or a trimmed mean keeps from the model
must not reach the others by way of their optimizers. In bounded memory, several pieces side by side, each in the
order of the sites' names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.blame import blame, blamed
from photon_core.aggregation.check import check_files
from photon_core.aggregation.mean import weighted_mean
from photon_core.aggregation.robust import median, trimmed_mean
from photon_core.aggregation.threads import Threads
from photon_core.errors import UpdateRejected
from photon_core.layout import Run
from photon_core.open_ranges import OpenRanges
from photon_core.shard_writer import ShardWriter
from photon_core.tensor_reader import Load, Piece, TensorReader, cut
from photon_core.tensors import SENT_AS, SHARD_BYTES, all_tensors
from photon_core.training.shapes import moment_shapes
from photon_core.update.floats import from_bfloat16, to_bfloat16
from schemas.aggregation import Aggregation
from schemas.manifests import FileEntry, TensorEntry, UpdateManifest
from schemas.model import Model
from schemas.server import Server

Float32 = NDArray[np.float32]
LEAST_PIECE, MOST_PIECE = 1 << 13, 1 << 17  # elements of a site
CACHED = 1 << 21  # elements of a piece, all sites
TOGETHER = 1 << 22  # bytes of one request to a server
FOLDER = "moments/"


def moments_for(files: Sequence[FileEntry], model: Model, optimizer: str) -> list[FileEntry]:
    """A round's averaged moments, for sites to go on from; none where they are another optimizer's, because the
    federation file has changed since: then each site starts afresh, and says so."""
    found = {name: tensor.shape for name, tensor in all_tensors(files).items()}
    return list(files) if found == moment_shapes(model, optimizer) else []


def average_moments(
    run: Run,
    t: int,
    updates: Mapping[str, UpdateManifest],
    weights: Mapping[str, float],
    model: Model,
    optimizer: str,
    server: Server,
    max_shard_bytes: int = SHARD_BYTES,
    settings: Aggregation | None = None,
    threads: int | None = None,
    dtype: str = "float32",
) -> list[FileEntry]:
    """Write round t's moments; the caller commits round.json, until then the files are litter.

    Args:
        run, t: the round.
        updates: each site's committed update.
        weights: the sites' shares of the mean, which sum to 1.
        model, optimizer: of the federation file; they say which moments there are.
        server: its mean.
        max_shard_bytes: size of the files.
        settings, threads: as for `aggregate`.
        dtype: float32 or bfloat16, what the mean is written as; a site's may be either.

    Raises:
        UpdateRejected: a site's moments are missing, damaged, of other shapes, not finite, so large that the mean
            is not, or negative where they are means of squares.
    """
    shapes = moment_shapes(model, optimizer)
    tensors = {name: TensorEntry(dtype=SENT_AS[dtype], shape=shape) for name, shape in shapes.items()}
    for site in sorted(updates):
        _check(site, updates[site], shapes)
    elements = max(LEAST_PIECE, min(MOST_PIECE, CACHED // len(updates)))
    with ExitStack() as stack:
        settings = settings or Aggregation()
        team, memory = Threads.start(stack, run.store.is_local, settings, threads), settings.memory_bytes
        readers, opened = {}, OpenRanges()
        for site in sorted(updates):
            folder = run.site_dir(t, site, updates[site].attempt)
            with blame(site):
                reader = TensorReader(run.store, folder, updates[site].moments, team.readers, opened)
            readers[site] = stack.enter_context(reader)
        writer = stack.enter_context(
            ShardWriter(run.store, run.round_dir(t), FOLDER, tensors, max_shard_bytes, team.writers)
        )
        sizes = {name: int(np.prod(tensor.shape)) for name, tensor in tensors.items()}

        def pieces() -> Iterator[Piece]:
            return (piece for name in writer.order for piece in cut(name, 0, sizes[name], elements))

        loads = {}
        together = min(TOGETHER, memory // (len(readers) * (team.ahead + team.side_by_side + 1)))
        for site, reader in readers.items():
            coming = reader.loads(pieces(), "", team.ahead, team.side_by_side, together)
            stream = stack.enter_context(closing(coming))
            loads[site] = blamed(site, stream)
        shares = [weights[site] for site in readers]

        def calls() -> Iterator[Callable[[], Float32]]:
            for piece in pieces():
                of_sites = {site: next(of) for site, of in loads.items()}
                yield partial(_mean, piece.name, of_sites, shares, server)

        def give_up() -> None:
            for reader in readers.values():
                reader.give_up()

        means = stack.enter_context(closing(team.results(calls(), give_up)))
        for piece, mean in zip(pieces(), means, strict=True):
            writer.write(piece.name, to_bfloat16(mean) if dtype == "bfloat16" else mean)
        for site, reader in readers.items():
            with blame(site):
                reader.verify()
        return writer.close()


def _mean(name: str, loads: Mapping[str, Load], shares: Sequence[float], server: Server) -> Float32:
    rows = np.stack([_checked(site, name, load()) for site, load in loads.items()])
    out: Float32 = np.empty_like(rows[0])
    with np.errstate(over="ignore", invalid="ignore"):
        if server.mean == "median":
            median(rows, out)
        elif server.mean == "trimmed":
            trimmed_mean(rows, server.trim, out)
        else:
            weighted_mean(rows, shares, out, np.empty_like(rows))
    if not np.isfinite(out).all():
        site = list(loads)[int(np.argmax(np.abs(rows).max(axis=1)))]
        raise UpdateRejected(site, f"the optimizer's moment '{name}' is so large that the mean is not finite")
    if name.startswith("exp_avg_sq."):
        np.maximum(out, 0, out=out)  # what rounding has taken below
    return out


def _check(site: str, update: UpdateManifest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse moments that are not the optimizer's, before any of their bytes are read."""
    with blame(site):
        found = all_tensors(update.moments)
    for name in sorted(found.keys() | shapes.keys()):
        tensor = found.get(name)
        if tensor is None or tensor.shape != shapes.get(name) or tensor.dtype not in SENT_AS.values():
            what = (
                "is missing" if tensor is None else "is not one of the optimizer's, or has another shape or dtype"
            )
            raise UpdateRejected(site, f"the optimizer's moment '{name[:200]}' {what}")
    with blame(site):
        check_files(update.moments, 2 * len(shapes))


def _checked(site: str, name: str, sent: NDArray[Any]) -> Float32:
    with blame(site):
        values = sent if sent.dtype == np.float32 else from_bfloat16(sent, np.empty(sent.shape, np.float32))
    if not np.isfinite(values).all() or (name.startswith("exp_avg_sq.") and values.min(initial=0) < 0):
        raise UpdateRejected(site, f"the optimizer's moment '{name}' is not finite, or negative")
    return values
