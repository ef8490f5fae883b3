"""A site's held-out sequences, an even share of each stream."""

import numpy as np
from numpy.typing import NDArray

from photon_core.data.manifest import require_manifest
from photon_core.data.mds import Shard, read_index, read_shard
from schemas.view import SiteView


def valid_sequences(view: SiteView, limit: int) -> NDArray[np.int64]:
    """At most `limit` held-out sequences, shape (n, T), spread evenly over the site's streams and shards.

    The sequences are the same in each call. Only the needed shards are read, one at a time, without shared memory.

    Raises:
        DataError: the site is not prepared, or a shard cannot be read.
    """
    manifest = require_manifest(view)
    indices = _valid_indices(view)
    counts = [sum(shard.samples for shard in shards) for shards in indices]
    blocks = [np.empty((0, manifest.sequence_length), np.int64)]
    for shards, count, share in zip(indices, counts, even_shares(counts, limit), strict=True):
        chosen = np.arange(share) * count // max(share, 1)
        start = 0
        for shard in shards:
            rows = chosen[(chosen >= start) & (chosen < start + shard.samples)] - start
            start += shard.samples
            if len(rows):
                blocks.append(read_shard(shard)[1][rows].astype(np.int64))
    return np.concatenate(blocks)


def valid_counts(view: SiteView, limit: int) -> dict[str, int]:
    """Number of `valid_sequences` from each stream, in their order."""
    counts = [sum(shard.samples for shard in shards) for shards in _valid_indices(view)]
    names = [stream.name for stream in view.streams]
    return dict(zip(names, even_shares(counts, limit), strict=True))


def _valid_indices(view: SiteView) -> list[list[Shard]]:
    return [read_index(view.split_dir(stream.name, "valid")) for stream in view.streams]


def even_shares(counts: list[int], limit: int) -> list[int]:
    """The number to take from each, so that the numbers sum to the limit and differ as little as possible."""
    shares = [0] * len(counts)
    left = min(limit, sum(counts))
    # the smallest first: the others give what these lack
    for place, i in enumerate(sorted(range(len(counts)), key=lambda i: (counts[i], i))):
        shares[i] = min(counts[i], left // (len(counts) - place))
        left -= shares[i]
    return shares
