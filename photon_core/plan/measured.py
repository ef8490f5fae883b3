"""The plan's calibration: measured times of the past rounds, from their manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from photon_core.plan.costs import aggregation_bytes, link_seconds
from photon_core.run.line import whole_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateRef

WINDOW = 5  # latest rounds that count: machines and links change
Calls = Mapping[int, float]  # round of the parent -> seconds of the rounds that a federation trained in it


@dataclass(frozen=True)
class Measured:
    """Medians over the latest rounds.

    Args:
        rounds: number of these rounds.
        tokens_per_second: training speed by site.
        overhead: seconds by site beyond training and transfers: start, data, encoding.
        concurrency: number of sites at work at a time: the sum of the sites' seconds over the seconds of the
            sites' part of the round. It includes everything that makes a round longer than its sites: sites that
            share a machine, waiting, Prefect.
        aggregate: seconds of aggregation per byte that it reads (photon_core/plan/costs.py).
        evaluate: seconds of the evaluation in a round.
    """

    rounds: int
    tokens_per_second: Mapping[str, float]
    overhead: Mapping[str, float]
    concurrency: float
    aggregate: float
    evaluate: float


def measure(
    federation: Federation, manifests: Sequence[RoundManifest], below: Mapping[str, Calls] | None = None
) -> Measured | None:
    """The calibration; None while no round has measured times.

    Args:
        federation: federation file, for the declared links.
        manifests: rounds in order; rounds without updates (round 0) do not count.
        below: name of a member that is a federation -> seconds of its calls.
    """
    calls = below or {}
    rounds = [m for m in manifests if m.updates and "sites" in m.seconds and _timed(m, calls)][-WINDOW:]
    if not rounds:
        return None
    sections = {section.name: section for section in federation.members}
    speed: dict[str, list[float]] = {}
    overhead: dict[str, list[float]] = {}
    concurrency, aggregate = [], []
    for manifest in rounds:
        total = 0.0
        for site, update in manifest.updates.items():
            seconds = _seconds(manifest, site, calls)
            if site not in calls:
                rate = update.metrics["tokens_per_second"]
                speed.setdefault(site, []).append(rate)
                overhead.setdefault(site, []).append(max(0.0, seconds - update.tokens / rate))
            total += seconds + link_seconds(federation, sections.get(site), update.bytes)
        concurrency.append(total / max(manifest.seconds["sites"], 1e-9))
        aggregate.append(manifest.seconds.get("aggregate", 0.0) / max(_read(federation, manifest), 1.0))
    return Measured(
        rounds=len(rounds),
        tokens_per_second={site: median(values) for site, values in speed.items()},
        overhead={site: median(values) for site, values in overhead.items()},
        concurrency=median(concurrency),
        aggregate=median(aggregate),
        evaluate=median(m.seconds.get("evaluate", 0.0) for m in rounds),
    )


def call_seconds(manifests: Sequence[RoundManifest]) -> dict[int, float]:
    """Parent's round -> seconds of the rounds that a federation has trained in it, in the latest try.

    Args:
        manifests: all rounds of the federation, from 0 on.
    """
    found: dict[int, float] = {}
    above: int | None = None
    for manifest in reversed(list(whole_of(manifests))):
        if manifest.parent is not None:
            above = manifest.parent.round
            found.pop(above, None)
        elif above is not None and manifest.kind == "train":
            found[above] = found.get(above, 0.0) + sum(manifest.seconds.values())
    return found


def _read(federation: Federation, manifest: RoundManifest) -> float:
    """Bytes that the aggregation of a round read."""
    sites = len(manifest.updates)
    update = sum(update.bytes for update in manifest.updates.values()) / sites
    return aggregation_bytes(federation, sites, update, len(manifest.partials))


def _seconds(manifest: RoundManifest, member: str, below: Mapping[str, Calls]) -> float:
    """Seconds of a member's work in a round, without transfers."""
    if member in below:
        return below[member][manifest.round]
    return manifest.updates[member].metrics["seconds"]


def _timed(manifest: RoundManifest, below: Mapping[str, Calls]) -> bool:
    return all(
        manifest.round in below[name] if name in below else _is_timed(update)
        for name, update in manifest.updates.items()
    )


def _is_timed(update: UpdateRef) -> bool:
    return update.metrics.get("tokens_per_second", 0) > 0 and "seconds" in update.metrics
