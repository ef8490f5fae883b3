"""PostProcess of Algorithm 1: what a site does to its change before it leaves: clip, add noise, compress.

The change is theta_k - theta, theta being what local training started from (the rounded model where
update.model_dtype is bfloat16; the node's own key layers where it has any). In this order, each optional:

1. Clip: the whole change is multiplied by min(1, clip_norm / its norm).
2. Noise: every element gets a Gaussian number of standard deviation noise_multiplier x clip_norm, so that a site's
   whole change of a round is hidden from everyone else, the coordinator included (the Gaussian mechanism, with
   sensitivity clip_norm).
3. Compress. What a lossy codec loses stays at the site and is added to its next change before that is compressed
   (error feedback; Karimireddy et al. 2019, arXiv 1901.09847). It holds only what clipping and noise have passed.
   A round in which nothing is lost, because the file says float32, leaves it as it is.

Key layers are clipped and noised with the rest, but not compressed: they are sent whole, as theta plus the change.

The noise comes from a generator seeded with a key that the site drew from the operating system's entropy and keeps
in its private state, with the job's hash and attempt, and with the hash of theta_k: nobody outside can foresee it,
the same work done again gives the same bytes, and other work never meets the same noise, even of the same job.
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
    """One update's way through the three steps.

    Args:
        settings: the federation file's `update`.
        theta, theta_k: give a tensor by name: what training started from, and what it ended with.
        names: of the tensors.
        feedback: what the codec lost of the site's last update, by name; empty at first.
        noise: generator; needed where the settings ask for noise. Its numbers go to the tensors as they are asked
            for.
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
            if not settings.noise_multiplier:  # an exact number of what the noise is to hide
                self._metrics["unclipped_norm"] = norm

    def encode(self, name: str) -> NDArray[np.generic]:
        """A tensor of the backbone as it is sent; call it once for each, in sorted order.

        Raises:
            PhotonError: the change is not finite, and the codec cannot say so.
        """
        codec = self.codec
        lost = self._feedback.get(name) if self._settings.error_feedback else None
        if isinstance(codec, Lossless):
            if lost is not None:  # of an earlier round's codec: it waits for the next lossy one
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
        """delta_norm, and key_delta_norm where there are key layers: of the change as sent. With clipping and no
        noise, unclipped_norm: of both together, before it."""
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
    """The generator of one piece of work's noise.

    Args:
        key_file: the site's private key; made where it is missing.
        work: what names the work and all that its result depends on.

    Raises:
        PhotonError: the key is damaged.
    """
    if not key_file.exists():
        with suppress(FileExistsError):  # the first one's stays
            write_whole(key_file, os.urandom(KEY_BYTES), mode=0o600, once=True)
    key = key_file.read_bytes()
    if len(key) != KEY_BYTES:  # an empty one would make noise that everybody can foresee
        raise PhotonError(f"{key_file} holds {len(key)} bytes, not {KEY_BYTES}; remove it, and another is drawn")
    digest = hashlib.blake2b(work.encode(), key=key, digest_size=32).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest, "little"))))


def _square(values: Float32) -> float:
    """The sum of the squares; to more digits than float32 has, because the server reckons it again."""
    flat = values.reshape(1, -1)
    with np.errstate(all="ignore"):  # what overflows is summed again in float64
        return float(dots(flat, flat)[0])
