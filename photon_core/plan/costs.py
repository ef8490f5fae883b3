"""What travels between a site and the store, in bytes and in seconds."""

from math import prod

from photon_core.model.shapes import moment_shapes, parameter_count, parameter_shapes
from photon_core.tensors.container import DTYPE_BYTES, SENT_AS
from photon_core.update.codecs.registry import get_codec
from schemas.federation import Federation

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


def link_seconds(federation: Federation, site: str, upload: float) -> float:
    """Seconds of a site's link in a round: what it fetches, and its update; 0 where no link is declared."""
    down, up = transfer_seconds(federation, site, upload)
    return (down or 0.0) + (up or 0.0)


def transfer_seconds(federation: Federation, site: str, upload: float) -> tuple[float | None, float | None]:
    """Seconds to download the model and to upload `upload` bytes; None for a link that is not declared."""
    section = next((known for known in federation.sites if known.name == site), None)
    if section is None or section.link is None:
        return None, None
    down = section.link.down or section.link.up
    return model_bytes(federation) / (down * GIGABIT), upload / (section.link.up * GIGABIT)


def slowest_link(federation: Federation) -> float | None:
    """Bytes a second of the slowest declared link, in its slower direction; None if any site declares none."""
    rates = []
    for site in map(federation.site, federation.active):
        if site.link is None:
            return None
        rates.append(min(site.link.up, site.link.down or site.link.up) * GIGABIT)
    return min(rates)
