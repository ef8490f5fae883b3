"""A site's scores of a global model, as an object of the run."""

import json
import re
from math import isfinite

from photon_core.errors import (
    CorruptFile,
    StoreConflict,
)
from photon_core.hashing import canonical_json
from photon_core.run.run import Run, model_sha256
from schemas.manifests import FileEntry
from schemas.sections.values import NAME

SCORES = {"loss", "perplexity", "tokens"}
SCORE = re.compile(rf"loss|perplexity|tokens|(?:loss|tokens)/{NAME.pattern}")
EVALUATION_LIMIT = 65_536  # bytes
SCORE_LIMIT = 1e15  # of loss and tokens; beyond it a mean over the sites might not be finite


def commit_evaluation(run: Run, t: int, site: str, model: list[FileEntry], scores: dict[str, float]) -> None:
    """Put a site's scores of a candidate for round t at the site's place in the store."""
    try:
        run.store.create(_evaluation_json(run, t, site, model), canonical_json(scores) + b"\n")
    except StoreConflict:
        pass  # evaluated before: the model and the held-out text are the same


def evaluation(run: Run, t: int, site: str, model: list[FileEntry]) -> dict[str, float] | None:
    """The site's committed scores of a candidate: loss, perplexity, tokens; loss and tokens of each of its streams
    where it has several. None while there are none.

    Raises:
        CorruptFile: they are no such finite numbers.
    """
    path = _evaluation_json(run, t, site, model)
    try:
        data = run.store.read(path, EVALUATION_LIMIT)
    except FileNotFoundError:
        return None
    try:
        scores = {name: float(value) for name, value in json.loads(data).items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        scores = {}
    finite = all(isfinite(value) and value >= 0 for value in scores.values())
    large = max((value for name, value in scores.items() if name != "perplexity"), default=0.0) > SCORE_LIMIT
    if not set(scores) >= SCORES or not all(map(SCORE.fullmatch, scores)) or not finite or large:
        raise CorruptFile(f"{run.store.locate(path)} does not hold the numbers {', '.join(sorted(SCORES))}")
    return scores


def _evaluation_json(run: Run, t: int, site: str, model: list[FileEntry]) -> str:
    return f"{run.round_dir(t)}/sites/{site}/evaluation-{model_sha256(model)[:16]}.json"
