"""Reads samples.u32: which sample of which stream stands behind each of its numbers.

The numbers run over the training splits of all the site's streams, in the order of the federation file.
"""

import bisect
from itertools import accumulate

from photon_core.data.mds import read_index
from photon_core.data.paths import find_site, split_dir
from photon_core.errors import DataError
from schemas.federation import Federation


def locate(federation: Federation, site: str, numbers: list[int]) -> list[tuple[str, int]]:
    """The stream of each sample, and its id there, as the column `id` of the stream's shards has it.

    Args:
        federation: the federation file that the samples were trained with.
        site: name of the site.
        numbers: of samples, as samples.u32 holds them.

    Raises:
        DataError: the site is not prepared, or it has no sample of such a number.
    """
    names = [stream.name for stream in find_site(federation, site).streams]
    splits = [read_index(split_dir(federation, site, name, "train")) for name in names]
    starts = list(accumulate((sum(shard.samples for shard in shards) for shards in splits), initial=0))
    places = []
    for number in numbers:
        if not 0 <= number < starts[-1]:
            raise DataError(f"site '{site}' has {starts[-1]} training samples, and none is number {number}")
        stream = bisect.bisect_right(starts, number) - 1
        places.append((names[stream], number - starts[stream]))
    return places
