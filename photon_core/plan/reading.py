"""How much the server reads to aggregate a round: what its time grows with, in one pass or by regions."""

from photon_core.aggregation.tree import regions
from schemas.federation import Federation


def region_count(federation: Federation, sites: int) -> int:
    """Regions that a round of so many sites is aggregated by; 0 where one pass reads all of them."""
    return len(regions(federation.aggregation, [str(number) for number in range(sites)]))


def bytes_read(sites: int, update: float, model: float, regions: int) -> float:
    """Bytes of updates and of regions' means that aggregation reads.

        K U                         in one pass over K updates of U bytes
        2 K U + R R M + R M         by R regions, whose means have M bytes (float32)

    By regions (photon_core/aggregation/tree.py): every site is read for its region's mean; then, for its cosine, a
    second time, beside the means of all R regions, in each of the R regions; then the root reads the R means. All
    of it runs where the round runs, so that regions bound the memory, the number of open files and what a
    repetition costs, not the time: with U = M they take 2 + R (R + 1) / K times one pass's.

    Args:
        sites: K, whose updates are aggregated.
        update, model: U and M, bytes.
        regions: R, 0 for one pass.
    """
    once = sites * update
    return 2 * once + regions * (regions + 1) * model if regions else once
