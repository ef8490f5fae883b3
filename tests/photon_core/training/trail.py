"""Reads samples.u32: the sample and stream of each of its numbers.

The numbers run over the training splits of all the site's streams, in the order of the federation file.
"""

import bisect
from itertools import accumulate

from photon_core.data.mds import read_index
from photon_core.errors import DataError
from schemas.view import SiteView


def locate(view: SiteView, numbers: list[int]) -> list[tuple[str, int]]:
    """The stream of each sample, and its id there, as the column `id` of the stream's shards has it.

    Args:
        view: the site that trained.
        numbers: of samples, as samples.u32 holds them.

    Raises:
        DataError: the site is not prepared, or it has no sample of such a number.
    """
    names = [stream.name for stream in view.streams]
    splits = [read_index(view.split_dir(name, "train")) for name in names]
    starts = list(accumulate((sum(shard.samples for shard in shards) for shards in splits), initial=0))
    places = []
    for number in numbers:
        if not 0 <= number < starts[-1]:
            raise DataError(f"site '{view.name}' has {starts[-1]} training samples, and none is number {number}")
        stream = bisect.bisect_right(starts, number) - 1
        places.append((names[stream], number - starts[stream]))
    return places
