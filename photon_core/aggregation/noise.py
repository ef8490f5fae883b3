"""Noise on the mean of clipped changes, for members that trust the federation that computes it.

    mean + N(0, (noise_multiplier x s)^2 I),   s = max_k (share of k) x (clip_norm of k)

A member's change in a round moves the mean by at most s: by clip_norm / n, if n members count equally. This is
the Gaussian mechanism of federated averaging with a trusted server (McMahan et al. 2018, arXiv 1710.06963). The
shares of a key layer are the weights of attention.

The noise comes from a key that the coordinator draws from its operating system and keeps in the run's store,
beside the updates without noise. A parent can read neither, and cannot foresee the noise. A mean that is computed
again gets the same noise, on any machine. Another mean, or another strength, meets other random numbers.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import CorruptFile, StoreConflict, UpdateRejected
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.objects import manifest_bytes
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run
from schemas.manifests import RoundManifest, UpdateManifest
from schemas.sections.server import Server

Float32 = NDArray[np.float32]
KEY_BYTES = 32
BLOCK = 1 << 12  # elements that are drawn together, counted from a tensor's start


@dataclass(frozen=True)
class Noise:
    """The noise of one mean.

    Args:
        deviation: standard deviation of each element.
        work: hash of everything that the mean and its noise depend on.
        key: key of the run.
    """

    deviation: float
    work: str
    key: bytes = field(repr=False)

    def add(self, tensor: str, start: int, values: Float32) -> None:
        """Add its noise to a tensor's elements from `start` on. No bit depends on where pieces end."""
        seed, end = self._seed(tensor), start + values.size
        for block in range(start // BLOCK, -(-end // BLOCK)):
            first = block * BLOCK
            low, high = max(start, first), min(end, first + BLOCK)
            drawn = _normals(seed, block)[low - first : high - first]
            part = values[low - start : high - start]
            np.add(part, np.float32(self.deviation) * drawn, out=part)

    def record(self) -> dict[str, Any]:
        """Everything that the noise depends on but the key, as JSON."""
        return {"deviation": self.deviation, "work": self.work}

    def _seed(self, tensor: str) -> int:
        digest = hashlib.blake2b(f"{self.work} {tensor}".encode(), key=self.key, digest_size=16)
        return int.from_bytes(digest.digest(), "little")


def _normals(seed: int, block: int) -> Float32:
    """The normal numbers of a block: a part of the generator's sequence that no other block has."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=block << 64))
    return generator.standard_normal(BLOCK, np.float32)


def noise_on(
    run: Run,
    base: RoundManifest,
    updates: Mapping[str, UpdateManifest],
    shares: Mapping[str, float],
    multiplier: float,
) -> Noise | None:
    """The noise of a mean; None without any, also if no member has a share.

    Args:
        run, base: run, and manifest of the round before.
        updates: averaged updates.
        shares: each one's share of the mean.
        multiplier: server.noise_multiplier.

    Raises:
        UpdateRejected: an update was not clipped.
        CorruptFile: the run's key is damaged.
    """
    if not multiplier:
        return None
    deviation = multiplier * max(shares[name] * _clip(update) for name, update in updates.items())
    hashes = {name: sha256_bytes(manifest_bytes(update)) for name, update in updates.items()}
    inputs = [run.run, base.round, base.model_sha256, hashes, dict(shares), deviation]
    return Noise(deviation, sha256_bytes(canonical_json(inputs)), key_of(run)) if deviation else None


def key_of(run: Run) -> bytes:
    """The run's key, drawn at its first use. The first writer's is kept.

    Raises:
        CorruptFile: it is damaged.
    """
    place = Place(PlaceKind.NOISE_KEY, run.run)
    if (key := run.read(place)) is None:
        with suppress(StoreConflict):
            run.commit(place, os.urandom(KEY_BYTES))
        key = run.read(place)
    if key is None or len(key) != KEY_BYTES:  # anyone could foresee the noise of an empty key
        found = 0 if key is None else len(key)
        where = run.store.locate(place.path)
        raise CorruptFile(f"{where} has {found} bytes, not {KEY_BYTES}. Remove it: the next round draws a new key")
    return key


def _clip(update: UpdateManifest) -> float:
    if update.clip_norm is None:
        raise UpdateRejected(update.site, "its change was not clipped, as server.noise_multiplier needs")
    return update.clip_norm


def noise_of(update: UpdateManifest) -> float:
    """Standard deviation of the noise in each parameter of an update's backbone, according to its member."""
    return math.hypot(update.noise, update.noise_multiplier * (update.clip_norm or 0.0))


def added(updates: Mapping[str, UpdateManifest], weights: Mapping[str, float], server: Server) -> float:
    """Standard deviation of the noise that a round adds to each parameter of its backbone.

    Args:
        updates: averaged updates.
        weights: their weights, which sum to 1.
        server: settings of the round, as used.
    """
    theirs = [weights[name] * noise_of(update) for name, update in updates.items()]
    own = server.noise_multiplier * max(weights[name] * (one.clip_norm or 0.0) for name, one in updates.items())
    return server.lr * math.hypot(own, *theirs)
