"""The entry points of child processes: the only table of the functions that a launcher runs.

The module is light, because launching processes import it. Each function imports its modules when it is called, in
the child.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.view import SiteView

if TYPE_CHECKING:
    from photon_core.data.expectations import CheckResult
    from photon_core.run.start import Initial
    from photon_core.training.job import LocalJob
    from photon_core.update.trained import Trained
    from schemas.federation import Federation
    from schemas.manifests import RoundManifest, StartManifest

# Modules that the fork server imports before it forks children for these functions.
PRELOAD = ("torch", "composer", "streaming", "great_expectations", "photon_core.training.preload")


def check_shards(view: SiteView, tokenizer_sha256: str) -> CheckResult:
    """Validate a site's shards before it trains on them."""
    from photon_core.data import quality

    return quality.check_shards(view, tokenizer_sha256)


def train(job: LocalJob, report: Callable[[dict[str, Any]], None]) -> Trained:
    """Make a site's local steps of a round. See `training.train.train`."""
    from photon_core.training import train

    return train.train(job, report)


def evaluate(view: SiteView, files: list[str], threads: int) -> dict[str, float]:
    """Evaluate a model on a site's held-out sequences."""
    from photon_core.training import evaluate

    return evaluate.evaluate(view, files, threads)


def evaluate_each(view: SiteView, models: list[list[str]], threads: int) -> list[dict[str, float]]:
    """Evaluate several models on a few of a site's held-out sequences."""
    from photon_core.training import evaluate

    return evaluate.evaluate_each(view, models, threads)


def make_initial(federation: Federation, folder: Path) -> Initial:
    """Create the model that a run starts from."""
    from photon_core.run import start

    return start.make_initial(federation, folder)


def upload_start(view: SiteView, folder: Path) -> StartManifest:
    """Upload the checkpoint of a site that the run starts from."""
    from photon_core.run import start

    return start.upload_start(view, folder)


def log_round(federation: Federation, manifest: RoundManifest) -> None:
    """Log a committed round to the experiment trackers."""
    from photon_core.evidence import tracking

    tracking.log_round(federation, manifest)
