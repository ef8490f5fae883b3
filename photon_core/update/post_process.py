"""PostProcess of Algorithm 1: a site clips its change, adds noise and compresses before it uploads.

The change is theta_k - theta. theta is the model that local training started from: the rounded one where
update.model_dtype is bfloat16, with the node's own key layers if it has any. The steps run in this order, and each
is optional:

1. Clip: the whole change is multiplied by min(1, clip_norm / its norm).
2. Noise: every element gets a Gaussian number of standard deviation noise_multiplier x clip_norm. It hides the
   site's whole change of a round from everyone else, the coordinator included (the Gaussian mechanism, with
   sensitivity clip_norm).
3. Compress: the residual of a lossy codec stays at the site and is added to the site's next change before that is
   compressed (error feedback; Karimireddy et al. 2019, arXiv 1901.09847). It holds only values after clipping and
   noise. A round with the codec float32 loses nothing and leaves the residual unchanged.

Key layers are clipped and noised with the rest, but not compressed: they are sent whole, as theta plus the change.

The noise generator is seeded with a key, with the job's hash and attempt, and with the hash of theta_k. The site
draws the key from the operating system's entropy and keeps it in its private state. So nobody else can foresee the
noise. Repeating the same work gives the same bytes. Different work never reuses noise, not even in the same job.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import PhotonError
from photon_core.files import write_whole
from photon_core.tensors.numerics import dots
from photon_core.update.codecs.registry import Codec, Lossless, Lossy, get_codec
from schemas.sections.update import Update

Float32 = NDArray[np.float32]
Parameters = Callable[[str], Float32]
KEY_BYTES = 32


class PostProcess:
    """The three steps for one update.

    Args:
        settings: the federation file's `update`.
        theta, theta_k: functions that return a tensor by name, before and after training.
        names: tensor names.
        feedback: residuals of the site's previous update, by tensor; empty at first.
        noise: generator, required if the settings have noise. Tensors draw from it in the order of the calls.
    """

    def __init__(
        self,
        settings: Update,
        theta: Parameters,
        theta_k: Parameters,
        names: Iterable[str],
        feedback: dict[str, Float32],
        noise: np.random.Generator | None,
    ) -> None:
        self.codec: Codec = get_codec(settings.codec_name)
        self.kept: dict[str, Float32] = {}
        self._settings, self._theta, self._theta_k, self._noise = settings, theta, theta_k, noise
        self._names, self._feedback = sorted(names), feedback
        self._squares, self._key_squares = 0.0, 0.0
        self._factor = 1.0
        self._metrics: dict[str, float] = {}
        if settings.clip_norm is not None:
            norm = math.sqrt(sum(_square(self._change(name)) for name in self._names))
            self._factor = min(1.0, settings.clip_norm / norm) if norm else 1.0
            if not settings.noise_multiplier:  # with noise, the exact norm would reveal what the noise hides
                self._metrics["unclipped_norm"] = norm

    def encode(self, name: str) -> NDArray[np.generic]:
        """A tensor of the backbone as it is sent. Call it once for each tensor, in sorted order.

        Raises:
            PhotonError: the change is not finite, and the codec cannot represent that.
        """
        codec = self.codec
        lost = self._feedback.get(name) if self._settings.error_feedback else None
        if isinstance(codec, Lossless):
            if lost is not None:  # the residual of an earlier round's codec waits for the next lossy one
                self.kept[name] = lost
            start, end = self._ends(name)
            self._squares += _square(end - start)
            return codec.encode(start, end)
        assert isinstance(codec, Lossy)
        change = self._processed(name)
        if lost is not None:
            np.add(change, lost, out=change)
        encoded = codec.encode(change)
        sent = codec.change(encoded, change.shape)
        self._squares += _square(sent)
        if self._settings.error_feedback:
            self.kept[name] = np.subtract(change, sent, out=change)
        return encoded

    def whole(self, name: str) -> Float32:
        """A tensor of a key layer as it is sent: what training ended with, to the bit, but for clipping and noise.
        Call it once for each, after the backbone, in sorted order."""
        start, end = self._ends(name)
        self._key_squares += _square(end - start)
        self._metrics["key_delta_norm"] = math.sqrt(self._key_squares)
        return end

    def metrics(self) -> dict[str, float]:
        """Norms of the change as sent: delta_norm, and key_delta_norm if there are key layers. With clipping
        and no noise also unclipped_norm, of both together before clipping."""
        return {"delta_norm": math.sqrt(self._squares), **self._metrics}

    def _ends(self, name: str) -> tuple[Float32, Float32]:
        """What training started from, and what clipping and noise make of what it ended with."""
        start = self._theta(name)
        plain = self._factor == 1.0 and not self._settings.noise_multiplier
        return start, self._theta_k(name) if plain else np.add(start, self._processed(name))

    def _change(self, name: str) -> Float32:
        return np.asarray(np.subtract(self._theta_k(name), self._theta(name)), np.float32)

    def _processed(self, name: str) -> Float32:
        change = self._change(name)
        if self._factor != 1.0:
            np.multiply(change, np.float32(self._factor), out=change)
        if self._settings.noise_multiplier:
            assert self._noise is not None and self._settings.clip_norm is not None
            deviation = np.float32(self._settings.noise_multiplier * self._settings.clip_norm)
            np.add(change, deviation * self._noise.standard_normal(change.shape, np.float32), out=change)
        return change


def noise_generator(key_file: Path, work: str) -> np.random.Generator:
    """The noise generator for one piece of work.

    Args:
        key_file: the site's private key; created if it is missing.
        work: identity of the work: its name, and all that its result depends on.

    Raises:
        PhotonError: the key is damaged.
    """
    if not key_file.exists():
        with suppress(FileExistsError):  # the key of the process that wrote first is kept
            write_whole(key_file, os.urandom(KEY_BYTES), mode=0o600, once=True)
    key = key_file.read_bytes()
    if len(key) != KEY_BYTES:  # anyone could foresee the noise of an empty key
        raise PhotonError(
            f"{key_file} has {len(key)} bytes, not {KEY_BYTES}. Remove it: the next training draws a new key"
        )
    digest = hashlib.blake2b(work.encode(), key=key, digest_size=32).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest, "little"))))


def _square(values: Float32) -> float:
    """The sum of the squares, to more digits than float32 has: the server computes it independently."""
    flat = values.reshape(1, -1)
    with np.errstate(all="ignore"):  # sums that overflow are repeated in float64
        return float(dots(flat, flat)[0])
