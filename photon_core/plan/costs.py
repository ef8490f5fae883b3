"""Inputs of the prediction: traffic between site and store in bytes and seconds, and bytes read in aggregation."""

from math import prod

from photon_core.aggregation.tree import regions
from photon_core.model.key_layers import key_layers, names_in
from photon_core.model.shapes import moment_shapes, parameter_count, parameter_shapes
from photon_core.tensors.container import DTYPE_BYTES, SENT_AS
from photon_core.update.codecs.registry import get_codec
from schemas.federation import Federation
from schemas.sections.sites import Site
from schemas.sections.tree import Child

GIGABIT = 1e9 / 8  # bytes
FLOAT32 = 4  # bytes of an element


def model_bytes(federation: Federation) -> int:
    """Bytes that a site downloads for a round: the global model, and averaged moments if the file has them.

    The headers of the files are not counted.
    """
    element = DTYPE_BYTES[SENT_AS[federation.update.model_dtype]]
    return parameter_count(federation.model) * element + _moment_bytes(federation)


def update_bytes(federation: Federation) -> int:
    """Bytes of a site's encoded update, with the moments if they are averaged, without headers.

    Key layers travel whole, in float32.
    """
    codec, keys = get_codec(federation.update.codec_name), names_in(key_layers(federation))
    shapes = [shape for name, shape in parameter_shapes(federation.model).items() if name not in keys]
    encoded = sum(prod(codec.shape(shape)) for shape in shapes) * DTYPE_BYTES[codec.dtype]
    return encoded + key_bytes(federation) + _moment_bytes(federation)


def key_bytes(federation: Federation) -> int:
    """Bytes of the key layers; 0 without any."""
    keys, shapes = names_in(key_layers(federation)), parameter_shapes(federation.model)
    return FLOAT32 * sum(prod(shapes[name]) for name in keys)


def entry_bytes(above: Federation, federation: Federation | None) -> int:
    """Bytes that a member that is a federation enters a round of its parent with, without residuals and headers.

    Args:
        above: file of the parent.
        federation: file of the member; None if it is not known, and taken to be like the parent's.
    """
    moments = _moment_bytes(above) if _share_moments(above, federation or above) else 0
    return FLOAT32 * parameter_count(above.model) + moments


def contribution_bytes(above: Federation, federation: Federation | None) -> int:
    """Bytes of its contribution: change of the backbone, key layers, moments; arguments as for `entry_bytes`."""
    own = federation or above
    noisy = own.update.noise_multiplier or own.server.noise_multiplier
    moments = _moment_bytes(own) if _share_moments(above, own) and not noisy else 0
    return FLOAT32 * parameter_count(above.model) + moments


def flat_bytes(federation: Federation) -> int:
    """Bytes that a site of the federation would move in a round of one flat federation without key layers."""
    flat = federation.model_copy(update={"worldlm": None})
    return model_bytes(flat) + update_bytes(flat)


def _share_moments(one: Federation, other: Federation) -> bool:
    """Whether averaged moments cross the link between two federations: both average those of one optimizer."""
    both = {one.local.optimizer_state, other.local.optimizer_state} == {"average"}
    return both and one.local.optimizer.name == other.local.optimizer.name


def _moment_bytes(federation: Federation) -> int:
    if federation.local.optimizer_state != "average":
        return 0
    element = DTYPE_BYTES[SENT_AS[federation.update.moments_dtype]]
    keys, optimizer = names_in(key_layers(federation)), federation.local.optimizer.name
    return element * sum(map(prod, moment_shapes(federation.model, optimizer, keys).values()))


def link_seconds(federation: Federation, section: Site | Child | None, upload: float) -> float:
    """Seconds of a member's downloads and uploads in a round; 0 without a declared link."""
    down, up = transfer_seconds(federation, section, upload)
    return (down or 0.0) + (up or 0.0)


def transfer_seconds(
    federation: Federation, section: Site | Child | None, upload: float
) -> tuple[float | None, float | None]:
    """Seconds to download the model and to upload `upload` bytes; None without a declared link.

    Args:
        federation: federation file.
        section: section of the member; None for a member that the file no longer has.
        upload: bytes to upload.
    """
    return over_link(section, model_bytes(federation), upload)


def over_link(section: Site | Child | None, down: float, up: float) -> tuple[float | None, float | None]:
    """Seconds for these bytes from and to the store over a member's link; None without a declared link."""
    if section is None or section.link is None:
        return None, None
    rate = section.link.down or section.link.up
    return down / (rate * GIGABIT), up / (section.link.up * GIGABIT)


def slowest_link(federation: Federation) -> float | None:
    """Bytes a second of the slowest declared link, in its slower direction; None if a member declares no link."""
    rates = []
    for one in federation.members:
        if one.paused:
            continue
        if one.link is None:
            return None
        rates.append(min(one.link.up, one.link.down or one.link.up) * GIGABIT)
    return min(rates)


def region_count(federation: Federation, sites: int) -> int:
    """The number of regions in the aggregation of that many sites; 0 if one pass reads all sites."""
    return len(regions(federation.aggregation, [str(number) for number in range(sites)]))


def bytes_read(sites: float, update: float, model: float, regions: int) -> float:
    """Bytes of updates and of regions' means that aggregation reads.

        K U                         in one pass over K updates of U bytes
        2 K U + R R M + R M         by R regions, whose means have M bytes (float32)

    With regions (photon_core/aggregation/tree.py), every update is read for its region's mean. It is read a
    second time for its cosine, together with the means of all R regions, in each of the R regions. Then the root
    reads the R means. All of it runs where the round runs. So regions bound the memory, the number of open files
    and the cost of a repetition, but not the time: with U = M they read 2 + R (R + 1) / K times the bytes of one
    pass.

    Args:
        sites: number K of aggregated updates.
        update, model: bytes U of an update and M of a mean.
        regions: number R of regions; 0 for one pass.
    """
    once = sites * update
    return 2 * once + regions * (regions + 1) * model if regions else once


def aggregation_bytes(federation: Federation, members: float, update: float, regions: int = 0) -> float:
    """Bytes that the aggregation of a round reads: key layers twice, for scores and for the mean.

    Args:
        federation: federation file.
        members: number of aggregated updates.
        update: bytes of one of them.
        regions: number of regions of the aggregation; 0 for one pass.
    """
    model = float(FLOAT32 * parameter_count(federation.model))
    return bytes_read(members, update, model, regions) + members * key_bytes(federation)
