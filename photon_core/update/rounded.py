"""Updates of sites that started from the model rounded to bfloat16 (update.model_dtype).

The store's model stays float32; beside it stand its tensors rounded to nearest, which the sites fetch, train
from and evaluate. A site's change is counted from what it started from, theta~: its pseudo-gradient is
theta~ - theta_k, and the coordinator applies it to theta itself, so that theta_k counts as
theta + (theta_k - theta~). So the rounding costs the sites some precision of theta in one round, and never enters
the model. The coordinator reads no rounded files: theta~ is a function of theta.

The lossy codecs write changes, so that for them nothing differs. The lossless one writes bits against theta~.
"""

import numpy as np

from photon_core.update.codecs.base import Array, Codec, Float32
from photon_core.update.codecs.floats import from_bfloat16, to_bfloat16
from photon_core.update.codecs.lossless import Lossless


class AgainstRounded(Lossless):
    """Codec float32 for a site that started from theta~: decode gives theta + (theta_k - theta~)."""

    def decode(self, theta: Float32, encoded: Array, out: Float32 | None = None) -> Float32:
        base = from_bfloat16(to_bfloat16(theta), np.empty(theta.shape, np.float32))
        theta_k = super().decode(base, encoded, out)
        np.subtract(theta_k, base, out=theta_k)
        return np.add(theta, theta_k, out=theta_k)


def against(codec: Codec, base_dtype: str) -> Codec:
    """The codec as it decodes updates of sites whose theta was of that dtype (F32 or BF16)."""
    return AgainstRounded() if base_dtype == "BF16" and codec.lossless else codec
