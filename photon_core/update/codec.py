"""The ways an update's tensors can be written: a registry of codecs by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import PhotonError
from photon_core.update import lossless

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Codec:
    """How a site's parameters are written against the theta that they started from.

    Args:
        name: as in update manifests.
        dtype: safetensors' name of the encoded tensors' element type; shapes are those of theta.
        encode: (theta, theta_k) -> encoded array.
        decode: (theta, encoded, out=None) -> theta_k; `out` may be any float32 array of theta's shape.
    """

    name: str
    dtype: str
    encode: Callable[[Float32, Float32], NDArray[Any]]
    decode: Callable[..., Float32]


CODECS = {"float32": Codec("float32", "I32", lossless.encode, lossless.decode)}


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        PhotonError: there is none.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise PhotonError(f"codec '{name[:64]}' is not known; use one of: {', '.join(sorted(CODECS))}") from None
