"""The model that a site has trained, restored from its committed update: theta plus the decoded change."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photon_core.model.key_layers import parted
from photon_core.run.run import Run
from photon_core.tensors.numerics import from_bfloat16, to_bfloat16
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import all_tensors, write_shards
from photon_core.update.codecs.registry import get_codec
from schemas.manifests import FileEntry, RoundManifest, UpdateManifest


def is_exact(update: UpdateManifest) -> bool:
    """Whether an update holds the very model of its site: it is lossless, and nothing was clipped or added."""
    return get_codec(update.codec).lossless and update.clip_norm is None and not update.noise_multiplier


def write_trained(
    run: Run, base: RoundManifest, update: UpdateManifest, folder: Path, max_bytes: int
) -> list[FileEntry]:
    """Write the part of a site's trained model that its update holds as a change: all but the key layers.

    Args:
        run, base: run, and manifest of the round whose model the site started from.
        update: update of the site.
        folder: folder for the files; the entries' paths are relative to it.
        max_bytes: maximum size of a file; a larger tensor is split by rows.

    Raises:
        CorruptFile: a file does not match its manifest.
    """
    codec, place = get_codec(update.codec), run.site_dir(update.round, update.site, update.attempt)
    old: Sequence[FileEntry] = parted(base.model, base.key_layers).backbone
    with (
        TensorReader(run.store, run.files_dir(base.round), old) as before,
        TensorReader(run.store, place, update.files) as change,
    ):

        def theta_k(name: str) -> NDArray[np.float32]:
            theta = before.array(name)
            flat = theta.reshape(-1)
            if update.base_dtype == "BF16":
                flat = from_bfloat16(to_bfloat16(flat), np.empty(flat.shape, np.float32))
            return codec.decode(flat, change.array(name).reshape(-1)).reshape(theta.shape)

        files = list(write_shards(folder, "", all_tensors(old), max_bytes, theta_k))
        before.verify()
        change.verify()
        return files
