"""What training and evaluation read: the site's streams merged, and its held-out sequences."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as numbers_from
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from photon_core.data.locks import folder_lock
from photon_core.data.manifest import require_manifest
from photon_core.data.mds import Shard, read_index, read_shard
from photon_core.data.paths import find_site, split_dir
from photon_core.errors import DataError
from photon_core.hashing import canonical_json, sha256_bytes
from schemas.federation import Federation
from schemas.sections.sites import Stream as StreamSection

if TYPE_CHECKING:
    from photon_core.data.sequences import Sequences

SHARED_MEMORY = Path("/dev/shm")
CONSTRUCTOR_TRIES = 20


def train_dataset(
    federation: Federation, site: str, seed: int, ranks: int = 1, wait: Callable[[], None] = lambda: None
) -> "Sequences":
    """The site's training sequences: all its streams, mixed by their proportions or repeats, shuffled by the seed.

    A sample is {"tokens": int64 array (T,), "id": int}; the id is its number among the samples of all streams,
    in the order of the federation file (see photon_core.data.trail). An epoch has as many samples as the streams
    together, or as their repeats make. The order of samples depends on the seed, the streams, their weights and
    their shards alone: see `stream_hash`. The dataset holds names under /dev/shm until `release` gives them back.

    Args:
        federation, site: whose.
        seed: of the shuffle.
        ranks: processes that share each batch, of which this is one; all of them see all samples, in the same
            order as one process alone, and each takes its share of every batch.
        wait: returns when all of them have called it.

    Raises:
        DataError: the site is not prepared.
    """
    from streaming import Stream

    from photon_core.data.sequences import Sequences

    require_manifest(federation, site)
    for attempt in range(CONSTRUCTOR_TRIES):
        streams = [
            Stream(
                local=str(split_dir(federation, site, stream.name, "train").absolute()),
                **_weight(stream),
                validate_hash="sha256",
            )
            for stream in find_site(federation, site).streams
        ]
        try:
            # mosaicml/streaming#884: two datasets constructed at once take the same names
            with shared_memory_lock(), _free_prefixes_only():
                wait()  # all look for free names, and the first rank has the lock now
                return Sequences(
                    streams=streams,
                    batch_size=federation.local.batch_size,
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


@contextmanager
def shared_memory_lock() -> Iterator[None]:
    """Hold the machine-wide lock around taking and giving back names under /dev/shm.

    The lock is on the folder itself: it leaves no file behind and ends with its process. Under a launcher
    only each node's first rank takes it, because the other ranks wait for that one inside the constructor.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    with folder_lock(SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path("/tmp")):
        yield


@contextmanager
def _free_prefixes_only() -> Iterator[None]:
    """Have streaming take a number of which nothing at all is left under /dev/shm.

    It looks for the first free number for each of its names and takes the greatest of these, under which a killed
    process may have left some other name: FileExistsError, for every dataset from then on.
    """
    from streaming.base.shared import prefix

    every = prefix._each_prefix_int
    if SHARED_MEMORY.is_dir():
        prefix._each_prefix_int = lambda: (n for n in numbers_from() if not any(SHARED_MEMORY.glob(f"{n:06d}_*")))
    try:
        yield
    finally:
        prefix._each_prefix_int = every


def shm_prefix(dataset: Any) -> str:
    """What the names of the dataset's own files under /dev/shm begin with, such as '000003_'."""
    return f"{dataset._shm_prefix_int:06d}_"


def release(dataset: Any, whole: bool = True) -> None:
    """Give back the dataset's names under /dev/shm and its lock files. It must not be iterated again.

    Args:
        dataset: of this process.
        whole: all of its names; else only those that this process has made, another rank having made the rest.
    """
    from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK
    from streaming.base.shared import SharedArray, SharedMemory, SharedScalar

    prefix = shm_prefix(dataset)
    parts = [*vars(dataset).values(), getattr(dataset._shared_barrier, "_arr", None)]
    arrays = [part.arr if isinstance(part, SharedScalar) else part for part in parts]
    memories = [array.shm if isinstance(array, SharedArray) else array for array in arrays]
    with shared_memory_lock():
        for memory in memories:
            if isinstance(memory, SharedMemory):
                _unlink(memory.created_shms)
                # its exit handler would unlink the names again, which by then may be another dataset's
                memory.created_shms.clear()
        if not whole:
            return
        for path in SHARED_MEMORY.glob(prefix + "*"):
            path.unlink(missing_ok=True)
        for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
            # left there, they would make every later dataset look for a higher number
            (Path(dataset._filelock_root) / f"{prefix}{name}").unlink(missing_ok=True)


def _unlink(memories: list[Any]) -> None:
    for memory in memories:
        try:
            memory.unlink()
        except FileNotFoundError:
            continue


def stream_hash(federation: Federation, site: str) -> str:
    """Hash of everything but the seed that the order of samples depends on: streams, proportions, shards.

    Keep it beside the stream's state: a state saved under another hash must not be continued.

    Raises:
        DataError: the site is not prepared, or its data lacks one of its streams.
    """
    manifest = require_manifest(federation, site)
    mix: list[Any] = []
    for stream in find_site(federation, site).streams:
        if stream.name not in manifest.streams:
            raise DataError(
                f"stream '{stream.name}' of site '{site}' is not prepared; run photon prepare --site {site}"
            )
        prefix = f"{stream.name}/train/"
        files = [file.sha256 for file in manifest.streams[stream.name].files if file.path.startswith(prefix)]
        weight = stream.proportion if stream.repeat is None else _weight(stream)
        mix.append([stream.name, weight, files])
    return sha256_bytes(canonical_json(mix))


def valid_sequences(federation: Federation, site: str, limit: int) -> NDArray[np.int64]:
    """At most `limit` held-out sequences, shape (n, T), spread evenly over the site's streams and shards.

    The same sequences each time. Reads only the shards it needs, one at a time, without shared memory.

    Raises:
        DataError: the site is not prepared, or a shard cannot be read.
    """
    manifest = require_manifest(federation, site)
    indices = _valid_indices(federation, site)
    counts = [sum(shard.samples for shard in shards) for shards in indices]
    blocks = [np.empty((0, manifest.sequence_length), np.int64)]
    for shards, count, share in zip(indices, counts, even_shares(counts, limit), strict=True):
        wanted = np.arange(share) * count // max(share, 1)
        start = 0
        for shard in shards:
            rows = wanted[(wanted >= start) & (wanted < start + shard.samples)] - start
            start += shard.samples
            if len(rows):
                blocks.append(read_shard(shard)[1][rows].astype(np.int64))
    return np.concatenate(blocks)


def valid_counts(federation: Federation, site: str, limit: int) -> dict[str, int]:
    """How many of `valid_sequences` come from each stream, in their order there."""
    counts = [sum(shard.samples for shard in shards) for shards in _valid_indices(federation, site)]
    names = [stream.name for stream in find_site(federation, site).streams]
    return dict(zip(names, even_shares(counts, limit), strict=True))


def _valid_indices(federation: Federation, site: str) -> list[list[Shard]]:
    streams = find_site(federation, site).streams
    return [read_index(split_dir(federation, site, stream.name, "valid")) for stream in streams]


def even_shares(counts: list[int], limit: int) -> list[int]:
    """How many to take of each, so that the shares sum to the limit and differ as little as they can."""
    shares = [0] * len(counts)
    left = min(limit, sum(counts))
    # the smallest first: what they cannot give, the others do
    for place, i in enumerate(sorted(range(len(counts)), key=lambda i: (counts[i], i))):
        shares[i] = min(counts[i], left // (len(counts) - place))
        left -= shares[i]
    return shares
