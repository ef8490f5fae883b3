"""What travels between a site and the store, in bytes and in seconds."""

from typing import Any

from photon_core.training.shapes import parameter_count
from schemas.federation import Federation

GIGABIT = 1e9 / 8  # bytes
FLOAT = 4  # bytes of a parameter
SCALE_BITS = 32  # of a block's scale, at most


def model_bytes(federation: Federation) -> int:
    """Bytes of the global model as sites download it."""
    section = getattr(federation, "update", None)
    short = section is not None and section.model_dtype == "bfloat16"
    return parameter_count(federation.model) * (2 if short else FLOAT)


def update_bytes(federation: Federation) -> float:
    """Bytes of a site's update by its codec: a bound for the codecs in blocks, exact for the others."""
    section: Any = getattr(federation, "update", None)
    codec = "float32" if section is None else section.codec
    count = parameter_count(federation.model)
    if codec == "float32":
        return count * 4.0
    if codec in ("bfloat16", "float16"):
        return count * 2.0
    scale = SCALE_BITS / section.block
    if codec == "topk":  # a value of 16 bits and a place in the block for each that is sent
        return count * (section.top_k * (16 + (section.block - 1).bit_length()) + scale) / 8
    return count * ({"int8": 8, "int4": 4}[codec] + scale) / 8


def link_seconds(federation: Federation, site: str, upload: float) -> float:
    """Seconds of a site's link in a round: the model down, the update up; 0 where no link is declared."""
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
    for site in federation.sites:
        if site.link is None:
            return None
        rates.append(min(site.link.up, site.link.down or site.link.up) * GIGABIT)
    return min(rates)
