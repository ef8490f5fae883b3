"""What training and evaluation read: the site's streams merged, and its held-out sequences."""

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

    A sample is {"tokens": int64 array (T,), "id": int}; the id is its number among the samples of all streams,
    in the order of the federation file (see photon_core.data.trail). An epoch has as many samples as the streams
    together, or as their repeats make. The order of samples depends on the seed, the streams, their weights and
    their shards alone: see `stream_hash`. The dataset holds names under /dev/shm until `release` gives them back.

    Args:
        view: whose.
        seed: of the shuffle.
        ranks: processes that share each batch, of which this is one; all of them see all samples, in the same
            order as one process alone, and each takes its share of every batch.
        wait: returns when all of them have called it.

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
                wait()  # all look for free names, and the first rank has the lock now
                return Sequences(
                    streams=streams,
                    batch_size=view.local.batch_size,
                    shuffle=True,
                    shuffle_seed=seed,
                    num_canonical_nodes=1,
                    replication=ranks if ranks > 1 else None,
                )
        except FileExistsError:
            # another program's dataset, which does not know our lock
            if attempt == CONSTRUCTOR_TRIES - 1 or ranks > 1:  # the others are in the constructor, and wait
                raise
            time.sleep(0.05)
    raise AssertionError("unreachable")


def _weight(stream: StreamSection) -> dict[str, float]:
    """How streaming weighs the stream: absolutely by its repeat, or by its proportion among the site's."""
    return {"proportion": stream.proportion} if stream.repeat is None else {"repeat": stream.repeat}


def stream_hash(view: SiteView) -> str:
    """Hash of everything but the seed that the order of samples depends on: streams, proportions, shards.

    Keep it beside the stream's state: a state saved under another hash must not be continued.

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
