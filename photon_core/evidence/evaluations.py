"""A site's scores of a global model: committed once, and read back as an untrusted claim."""

import json
from math import isfinite

from photon_core.errors import (
    CorruptFile,
    StoreConflict,
)
from photon_core.evidence.metrics import find, reported
from photon_core.hashing import canonical_json
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run, model_sha256
from schemas.manifests import FileEntry

EVALUATION_LIMIT = 65_536  # bytes
SCORE_LIMIT = 1e15  # largest value of a metric with a bound; beyond it a mean over the sites might not be finite


def commit_evaluation(run: Run, t: int, site: str, model: list[FileEntry], scores: dict[str, float]) -> None:
    """Commit a site's scores of a candidate for round t in the site's folder of the store. Idempotent."""
    try:
        run.commit(_place(run, t, site, model), canonical_json(scores) + b"\n")
    except StoreConflict:
        pass  # already evaluated, with the same model and held-out text


def evaluation(run: Run, t: int, site: str, model: list[FileEntry]) -> dict[str, float] | None:
    """The site's committed scores of a candidate, by the register's names; None if there are none.

    Raises:
        CorruptFile: a score is missing, not registered, not finite, negative or too large.
    """
    place = _place(run, t, site, model)
    data = run.read(place, EVALUATION_LIMIT)
    if data is None:
        return None
    try:
        scores = {name: float(value) for name, value in json.loads(data).items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        scores = {}
    required = sorted(metric.head for metric in reported("evaluation") if metric.required)
    if not scores.keys() >= set(required) or not all(_possible(name, value) for name, value in scores.items()):
        raise CorruptFile(f"{run.store.locate(place.path)} does not hold valid numbers {', '.join(required)}")
    return scores


def _possible(name: str, value: float) -> bool:
    metric = find(name, "evaluation")
    return metric is not None and isfinite(value) and value >= 0 and (not metric.bound or value <= SCORE_LIMIT)


def _place(run: Run, t: int, site: str, model: list[FileEntry]) -> Place:
    return Place(PlaceKind.EVALUATION, run.run, t, site, content=model_sha256(model)[:16])
