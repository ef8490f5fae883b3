"""Noise in words, for the status and the report of a run: its place and its strength."""

from collections.abc import Iterable, Iterator, Mapping

from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateManifest

NO_PROMISE = "noise, not a guarantee"


def of_file(federation: Federation) -> list[str]:
    """The noise that a federation adds to its own rounds; empty without noise."""
    update, server = federation.update, federation.server
    return list(_texts(update.clip_norm, [update.noise_multiplier], server.noise_multiplier))


def of_round(manifest: RoundManifest, updates: Mapping[str, UpdateManifest]) -> list[str]:
    """The noise in a round's mean, and in the changes that members have handed up; empty without noise.

    Args:
        manifest: manifest of the round.
        updates: updates that it has averaged.
    """
    clips = [update.clip_norm for update in updates.values() if update.clip_norm is not None]
    found = {update.noise_multiplier for update in updates.values()}
    mean = float(manifest.server.get("noise_multiplier", 0.0))
    return [
        *_texts(max(clips, default=None), sorted(found), mean),
        *(
            f"noise in the change of {name}: standard deviation {update.noise:.3g} of each parameter: {NO_PROMISE}"
            for name, update in sorted(updates.items())
            if update.noise
        ),
    ]


def _texts(clip: float | None, sites: Iterable[float], mean: float) -> Iterator[str]:
    places = [*(("each site's change", multiplier) for multiplier in sites), ("the mean of the changes", mean)]
    for place, multiplier in places:
        if multiplier:
            yield f"noise on {place}: noise_multiplier {multiplier:g} at clip_norm {clip or 0:g}: {NO_PROMISE}"
