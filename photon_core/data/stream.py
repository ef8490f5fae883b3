"""The training dataset of a site: its streams, merged and shuffled."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from photon_core.data.manifest import require_manifest
from photon_core.data.shared_memory import free_prefixes_only, shared_memory_lock
from photon_core.errors import DataError
from photon_core.hashing import canonical_json, sha256_bytes
from schemas.sections.sites import Stream as StreamSection
from schemas.view import SiteView

if TYPE_CHECKING:
    from photon_core.data.sequences import Sequences

CONSTRUCTOR_TRIES = 20


def train_dataset(
    view: SiteView, seed: int, ranks: int = 1, wait: Callable[[], None] = lambda: None
) -> "Sequences":
    """The site's training sequences: all its streams, mixed by their proportions or repeats, shuffled by the seed.

    A sample is {"tokens": int64 array (T,), "id": int}; the id is its number among the samples of all streams, in
    the order of the federation file. An epoch has as many samples as the streams together, or as their repeats
    make. The order of samples depends on the seed, the streams, their weights and their shards alone: see
    `stream_hash`. The dataset holds names under /dev/shm until `release`.

    Args:
        view: site of the data.
        seed: shuffle seed.
        ranks: number of processes that share each batch, including this one; every process sees all samples, in
            the same order as a single process, and takes its share of every batch.
        wait: barrier function: it returns when all these processes have called it.

    Raises:
        DataError: the site is not prepared.
    """
    from streaming import Stream

    from photon_core.data.sequences import Sequences

    require_manifest(view)
    for attempt in range(CONSTRUCTOR_TRIES):
        streams = [
            Stream(
                local=str(view.split_dir(stream.name, "train").absolute()),
                **_weight(stream),
                validate_hash="sha256",
            )
            for stream in view.streams
        ]
        try:
            # mosaicml/streaming#884: two datasets constructed at once take the same names
            with shared_memory_lock(), free_prefixes_only():
                wait()  # the first rank has the lock now, before any rank looks for free names
                return Sequences(
                    streams=streams,
                    batch_size=view.local.batch_size,
                    shuffle=True,
                    shuffle_seed=seed,
                    num_canonical_nodes=1,
                    replication=ranks if ranks > 1 else None,
                )
        except FileExistsError:
            # a dataset of another program, which does not use this lock
            if attempt == CONSTRUCTOR_TRIES - 1 or ranks > 1:  # other ranks already wait in the constructor
                raise
            time.sleep(0.05)
    raise AssertionError("unreachable")


def _weight(stream: StreamSection) -> dict[str, float]:
    """Streaming's weight of the stream: its repeat, or its proportion among the site's streams."""
    return {"proportion": stream.proportion} if stream.repeat is None else {"repeat": stream.repeat}


def stream_hash(view: SiteView) -> str:
    """Hash of everything except the seed that the order of samples depends on: streams, weights, shards.

    It is kept beside the stream's state: training must not resume from a state with another hash.

    Raises:
        DataError: the site is not prepared, or its data lacks one of its streams.
    """
    manifest = require_manifest(view)
    mix: list[Any] = []
    for stream in view.streams:
        if stream.name not in manifest.streams:
            raise DataError(
                f"stream '{stream.name}' of site '{view.name}' is not prepared; "
                f"run photon prepare --site {view.name}"
            )
        prefix = f"{stream.name}/train/"
        files = [file.sha256 for file in manifest.streams[stream.name].files if file.path.startswith(prefix)]
        weight = stream.proportion if stream.repeat is None else _weight(stream)
        mix.append([stream.name, weight, files])
    return sha256_bytes(canonical_json(mix))
