"""Predicted against measured: every round from the rounds before it."""

from collections.abc import Sequence

from photon_core.plan.measured import measure
from photon_core.plan.predict import predict
from schemas.federation import Federation
from schemas.manifests import RoundManifest


def compared(federation: Federation, rounds: Sequence[RoundManifest]) -> list[tuple[int, float | None, float]]:
    """(round, seconds that the rounds before it let expect, seconds that it took) for every measured round.

    The first has nothing before it but what the sites declare; None where they do not.
    """
    found = []
    for index, manifest in enumerate(rounds):
        if manifest.updates and manifest.seconds:
            expected = predict(federation, measure(federation, rounds[:index])).round_seconds
            found.append((manifest.round, expected, sum(manifest.seconds.values())))
    return found
