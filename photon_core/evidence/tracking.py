"""Logging a committed round's metrics to the trackers, through Composer's loggers. Child processes only."""

from pathlib import Path
from typing import Any

from photon_core.evidence.loggers import make_loggers
from photon_core.evidence.trackers import tracked
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.sections.local import Logger as LoggerSection
from schemas.sections.trackers import Tracker


def log_round(federation: Federation, manifest: RoundManifest) -> None:
    """Log a round under the run's name, with its number as the step. A repetition logs the same values again.

    Raises:
        PhotonError: a tracker cannot be started.
    """
    from composer.core import State
    from composer.devices import DeviceCPU
    from composer.loggers import Logger
    from torch.nn import Linear

    # Composer's loggers need its State for the run's name, and a State needs a model
    state = State(rank_zero_seed=0, run_name=federation.run, model=Linear(1, 1), device=DeviceCPU())
    for tracker in federation.trackers:
        folder = Path(tracker.folder or "photon-trackers")
        folder.mkdir(parents=True, exist_ok=True)
        section = LoggerSection(name=tracker.name, options=_options(tracker, federation.run, folder))
        destinations = make_loggers([section], folder, "trackers")
        logger = Logger(state, destinations)
        for destination in destinations:
            destination.init(state, logger)
            destination.log_metrics(tracked(manifest), step=manifest.round)
            destination.close(state, logger)
            destination.post_close()


def _options(tracker: Tracker, run: str, folder: Path) -> dict[str, Any]:
    """The file's options over Photon's defaults, by which every round is logged to the same run of the tracker."""
    options = dict(tracker.options)
    if tracker.name == "mlflow":
        ours: dict[str, Any] = {"experiment_name": "photon", "resume": True, "log_system_metrics": False}
        return {**ours, "synchronous": True, **options}
    if tracker.name == "wandb":
        kwargs = {"id": run, "resume": "allow", "dir": str(folder), **options.pop("init_kwargs", {})}
        return {"project": "photon", "name": run, **options, "init_kwargs": kwargs}
    return options
