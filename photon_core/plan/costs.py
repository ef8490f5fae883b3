"""Inputs of the prediction: what travels between site and store, in bytes and seconds; what aggregation reads."""

from math import prod

from photon_core.aggregation.tree import regions
from photon_core.model.shapes import moment_shapes, parameter_count, parameter_shapes
from photon_core.tensors.container import DTYPE_BYTES, SENT_AS
from photon_core.update.codecs.registry import get_codec
from schemas.federation import Federation
from schemas.sections.sites import Site
from schemas.sections.tree import Child

GIGABIT = 1e9 / 8  # bytes


def model_bytes(federation: Federation) -> int:
    """Bytes that a site downloads for a round: the global model, and averaged moments if the file asks for them,
    without the headers of their files."""
    element = DTYPE_BYTES[SENT_AS[federation.update.model_dtype]]
    return parameter_count(federation.model) * element + _moment_bytes(federation)


def update_bytes(federation: Federation) -> int:
    """Bytes of a site's update as its codec writes it, with the moments that are averaged, without headers."""
    codec = get_codec(federation.update.codec_name)
    shapes = parameter_shapes(federation.model).values()
    return sum(prod(codec.shape(shape)) for shape in shapes) * DTYPE_BYTES[codec.dtype] + _moment_bytes(federation)


def _moment_bytes(federation: Federation) -> int:
    if federation.local.optimizer_state != "average":
        return 0
    element = DTYPE_BYTES[SENT_AS[federation.update.moments_dtype]]
    return element * sum(map(prod, moment_shapes(federation.model, federation.local.optimizer.name).values()))


def link_seconds(federation: Federation, section: Site | Child | None, upload: float) -> float:
    """Seconds of a site's link in a round: what it fetches, and its update; 0 where no link is declared."""
    down, up = transfer_seconds(federation, section, upload)
    return (down or 0.0) + (up or 0.0)


def transfer_seconds(
    federation: Federation, section: Site | Child | None, upload: float
) -> tuple[float | None, float | None]:
    """Seconds to download the model and to upload `upload` bytes; None for a link that is not declared.

    Args:
        federation: the file.
        section: the member's; None of one that the file does not name any more.
        upload: bytes.
    """
    if section is None or section.link is None:
        return None, None
    down = section.link.down or section.link.up
    return model_bytes(federation) / (down * GIGABIT), upload / (section.link.up * GIGABIT)


def slowest_link(federation: Federation) -> float | None:
    """Bytes a second of the slowest declared link, in its slower direction; None if a member declares none."""
    rates = []
    for one in federation.members:
        if one.paused:
            continue
        if one.link is None:
            return None
        rates.append(min(one.link.up, one.link.down or one.link.up) * GIGABIT)
    return min(rates)


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
