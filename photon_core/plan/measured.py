"""The plan's calibration: measured times of the past rounds, from their manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from photon_core.model.shapes import parameter_count
from photon_core.plan.costs import bytes_read, link_seconds
from schemas.federation import Federation
from schemas.manifests import RoundManifest

WINDOW = 5  # latest rounds that count: machines and links change


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


def measure(federation: Federation, manifests: Sequence[RoundManifest]) -> Measured | None:
    """The calibration; None while no round has measured times.

    Args:
        federation: federation file, for the declared links.
        manifests: rounds in order; rounds without updates (round 0) do not count.
    """
    rounds = [m for m in manifests if m.updates and "sites" in m.seconds and _timed(m)][-WINDOW:]
    if not rounds:
        return None
    sections = {section.name: section for section in federation.members}
    speed: dict[str, list[float]] = {}
    overhead: dict[str, list[float]] = {}
    concurrency, aggregate = [], []
    for manifest in rounds:
        total = 0.0
        for site, update in manifest.updates.items():
            rate, seconds = update.metrics["tokens_per_second"], update.metrics["seconds"]
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


def _read(federation: Federation, manifest: RoundManifest) -> float:
    """Bytes that the aggregation of a round read."""
    sites, model = len(manifest.updates), 4.0 * parameter_count(federation.model)
    update = sum(update.bytes for update in manifest.updates.values()) / sites
    return bytes_read(sites, update, model, len(manifest.partials))


def _timed(manifest: RoundManifest) -> bool:
    return all(
        update.metrics.get("tokens_per_second", 0) > 0 and "seconds" in update.metrics
        for update in manifest.updates.values()
    )
