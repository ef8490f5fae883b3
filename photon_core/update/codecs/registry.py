"""Codecs by name, with their numbers: float32, int8:256, topk:256:16."""

import re
from collections.abc import Callable

from photon_core.errors import PhotonError
from photon_core.update.codecs.base import Codec, Lossy
from photon_core.update.codecs.blocks import Int3, Int4, Int8
from photon_core.update.codecs.floats import BFloat16, Float16
from photon_core.update.codecs.lossless import Lossless, Plain
from photon_core.update.codecs.top_k import TopK
from schemas.sections.update import LARGEST_BLOCK, LEAST_BLOCK

__all__ = ["Codec", "Lossless", "Lossy", "get_codec"]

PLAIN: dict[str, Callable[[], Codec]] = {
    "float32": Lossless,
    "bfloat16": BFloat16,
    "float16": Float16,
}
OURS: dict[str, Callable[[], Codec]] = {"plain": Plain}  # for means of regions: a server writes them, never a site
BLOCKS: dict[str, Callable[[int], Codec]] = {"int8": Int8, "int4": Int4, "int3": Int3}


def get_codec(name: str, ours: bool = False) -> Codec:
    """The codec of that name.

    Args:
        name: name in a manifest.
        ours: flag: a server wrote the files, not a site.

    Raises:
        PhotonError: no codec has this name.
    """
    known = PLAIN | OURS if ours else PLAIN
    if name in known:
        return known[name]()
    if match := re.fullmatch(r"(int8|int4|int3|topk):([1-9][0-9]{0,3})(?::([1-9][0-9]{0,3}))?", name):
        kind, block, kept = match[1], int(match[2]), int(match[3] or 0)
        fits = LEAST_BLOCK <= block <= LARGEST_BLOCK and not block & (block - 1)
        if fits and kind == "topk" and 1 <= kept <= block:
            return TopK(block, kept)
        if fits and kind != "topk" and match[3] is None:
            return BLOCKS[kind](block)
    raise PhotonError(
        f"codec '{name[:64]}' is not known; use one of: bfloat16, float16, float32, int3:BLOCK, int4:BLOCK, "
        f"int8:BLOCK, topk:BLOCK:KEPT, where BLOCK is a power of two from {LEAST_BLOCK} to {LARGEST_BLOCK}"
    )
