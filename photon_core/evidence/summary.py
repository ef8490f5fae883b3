"""A round as rows, one for each site: for the tables of `photon status`, its JSON and the Prefect UI."""

from typing import Any

from photon_core.evidence.metrics import By, Metric, reported
from schemas.manifests import RoundManifest


def columns() -> list[tuple[By, Metric]]:
    """The metrics that sites report and that have a column."""
    sites: tuple[By, ...] = ("training", "evaluation")
    return [(by, metric) for by in sites for metric in reported(by) if metric.column]


def summary(manifest: RoundManifest) -> list[dict[str, Any]]:
    """One row for each sampled or evaluated site: its part in the round."""
    rows = []
    for site in sorted({*manifest.sampled, *manifest.evaluations, *manifest.not_evaluated, *manifest.paused}):
        update = manifest.updates.get(site)
        values = {"training": update.metrics if update else {}, "evaluation": manifest.evaluations.get(site, {})}
        rows.append(
            {
                "round": manifest.round,
                "site": site,
                "tokens": update.tokens if update else 0,
                **{metric.column: values[by].get(metric.head) for by, metric in columns()},
                "bytes sent": update.bytes if update else 0,
                "seconds": update.metrics.get("seconds") if update else None,
                "left out": _why_left_out(manifest, site),
                "not evaluated": manifest.not_evaluated.get(site, ""),
                "incidents": "; ".join(manifest.incidents.get(site, [])),
            }
        )
    return rows


def whole(manifest: RoundManifest) -> dict[str, Any]:
    """The row of the whole round, with the round's values of the metrics."""
    return {
        "round": manifest.round,
        "tokens": sum(update.tokens for update in manifest.updates.values()),
        **{metric.column: manifest.metrics.get(metric.head) for _, metric in columns()},
        "bytes sent": sum(update.bytes for update in manifest.updates.values()),
        "seconds": sum(manifest.seconds.values()),
    }


def _why_left_out(manifest: RoundManifest, site: str) -> str:
    if site in manifest.paused:
        return "paused"
    return manifest.left_out.get(site, "" if site in manifest.sampled else "not sampled")
