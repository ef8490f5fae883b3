"""The weighted mean of the sites' optimizer moments, from which all sites go on in the next round.

In bounded memory, piece by piece, in the order of the sites' names.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.mean import weighted_mean
from photon_core.errors import CorruptFile, PhotonError, UpdateRejected
from photon_core.layout import Run
from photon_core.shard_writer import ShardWriter
from photon_core.store import SHA256, check_path
from photon_core.tensor_reader import Array, TensorReader
from photon_core.tensors import SHARD_BYTES, all_tensors
from photon_core.training.shapes import moment_shapes
from schemas.manifests import FileEntry, TensorEntry, UpdateManifest
from schemas.model import Model

Float32 = NDArray[np.float32]
CHUNK_ELEMENTS = 1 << 17
FOLDER = "moments/"


def average_moments(
    run: Run,
    t: int,
    updates: Mapping[str, UpdateManifest],
    weights: Mapping[str, float],
    model: Model,
    optimizer: str,
    max_shard_bytes: int = SHARD_BYTES,
) -> list[FileEntry]:
    """Write round t's moments; the caller commits round.json, until then the files are litter.

    Args:
        run, t: the round.
        updates: each site's committed update.
        weights: the sites' shares of the mean, which sum to 1.
        model, optimizer: of the federation file; they say which moments there are.
        max_shard_bytes: size of the files.

    Raises:
        UpdateRejected: a site's moments are missing, damaged, of other shapes, not finite, or negative where they
            are means of squares.
    """
    tensors = {
        name: TensorEntry(dtype="F32", shape=shape) for name, shape in moment_shapes(model, optimizer).items()
    }
    for site in sorted(updates):
        _check(site, updates[site], tensors)
    with ExitStack() as stack:
        readers = {}
        for site in sorted(updates):
            folder = run.site_dir(t, site, updates[site].attempt)
            readers[site] = stack.enter_context(TensorReader(run.store, folder, updates[site].moments))
        writer = stack.enter_context(ShardWriter(run.store, run.round_dir(t), FOLDER, tensors, max_shard_bytes))
        shares = [weights[site] for site in readers]
        for name in writer.order:
            chunks = {site: reader.chunks(name, CHUNK_ELEMENTS) for site, reader in readers.items()}
            for _ in range(-(-int(np.prod(tensors[name].shape)) // CHUNK_ELEMENTS)):
                pieces = np.stack([_next(site, name, chunk) for site, chunk in chunks.items()])
                out = np.empty_like(pieces[0])
                weighted_mean(pieces, shares, out, np.empty_like(pieces))
                if name.startswith("exp_avg_sq."):
                    np.maximum(out, 0, out=out)  # what rounding has taken below
                writer.write(name, out)
        for site, reader in readers.items():
            try:
                reader.verify()
            except CorruptFile as error:
                raise UpdateRejected(site, str(error)) from error
        return writer.close()


def _check(site: str, update: UpdateManifest, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse moments that are not the optimizer's, before any of their bytes are read."""
    try:
        for entry in update.moments:
            check_path(entry.path)
            if not SHA256.fullmatch(entry.sha256):
                raise PhotonError(f"file '{entry.path}' has no sha256")
        found = all_tensors(update.moments)
    except PhotonError as error:
        raise UpdateRejected(site, str(error)) from error
    for name in sorted(found.keys() | tensors.keys()):
        if found.get(name) != tensors.get(name):
            what = "is missing" if name not in found else "is not one of the optimizer's, or has another shape"
            raise UpdateRejected(site, f"the optimizer's moment '{name[:200]}' {what}")


def _next(site: str, name: str, chunks: Iterator[Array]) -> Float32:
    try:
        values = next(chunks).copy()
    except CorruptFile as error:
        raise UpdateRejected(site, str(error)) from error
    if not np.isfinite(values).all() or (name.startswith("exp_avg_sq.") and values.min(initial=0) < 0):
        raise UpdateRejected(site, f"the optimizer's moment '{name}' is not finite, or negative")
    return values
