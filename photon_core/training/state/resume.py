"""The state that a site's training resumes from: its last aggregated round's, or a local checkpoint.

Child processes only.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from photon_core.evidence.events import Kind, Log, fact_of
from photon_core.training.callback import Progress
from photon_core.training.job import LocalJob
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import TRAINING, find


@dataclass
class Resumed:
    """The state that this training resumes from.

    Args:
        state: optimizer, stream, mix, random, samples, as `finish.kept_state` gives them; None without a state.
        log: log of the training, with events for the operator.
        metrics: metrics of those events.
        progress: progress in this round.
        parameters: model parameters of a checkpoint; None at the start of a round.
        trail: content of samples.u32 so far.
    """

    state: dict[str, Any] | None
    log: Log = field(default_factory=lambda: Log(""))
    metrics: dict[str, float] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    parameters: dict[str, torch.Tensor] | None = None
    trail: bytes = b""

    @property
    def samples(self) -> int:
        """The number of samples trained before this round."""
        return int(self.state["samples"]) if self.state else 0


def load_resume_state(job: LocalJob, folder: Path, mix: str, checkpoints: Checkpoints, nodes: int = 1) -> Resumed:
    """The state to resume from. The log reports every part that is missing or no longer fits.

    Args:
        job: training job.
        folder: private folder of the site or the node.
        mix: hash of the current mix of streams.
        checkpoints: checkpoints of the job.
        nodes: number of nodes that train independently now, each with its own state.
    """
    log = job.log()
    if saved := checkpoints.read(log):
        at = {"at": saved["progress"]["steps"], "steps": job.view.steps}
        if saved["state"]["mix"] == mix:
            for note in saved["notes"]:
                log.add(fact_of(note))
            log.append(Kind.CHECKPOINT_RESUMED, **at)
            return Resumed(
                saved["state"],
                log,
                {**saved["metrics"], "resumed_at_step": float(at["at"])},
                Progress(**saved["progress"]),
                saved["parameters"],
                saved["trail"].numpy().tobytes(),
            )
        log.append(Kind.CHECKPOINT_OF_OTHER_STREAMS, **at)
    return _load_state(job, folder, mix, nodes, log)


def _load_state(job: LocalJob, folder: Path, mix: str, nodes: int, log: Log) -> Resumed:
    """The private state of the site's last aggregated round."""
    if job.resume is None:
        return Resumed(None, log)
    round, attempt = job.resume
    last = {"last_round": round, "last_attempt": attempt}
    kept = find(folder, round, attempt)
    try:
        saved = None if kept is None else torch.load(kept / TRAINING, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        log.append(Kind.STATE_LOST, **last)
        return Resumed(None, log, {"state_lost": 1.0})
    resumed = Resumed(saved, log)
    if (saved.get("nodes") or 1) != nodes:
        saved["optimizer"] = saved["stream"] = None
        log.append(Kind.STATE_OF_OTHER_NODES, **last, before=saved.get("nodes") or 1, now=nodes)
        resumed.metrics["state_lost"] = 1.0
    if saved["mix"] != mix:
        if at := saved["stream"]:  # a new epoch has another order: training does not repeat the first samples
            saved["stream"] = {**at, "epoch": at["epoch"] + 1, "sample_in_epoch": 0}
        log.append(Kind.STATE_OF_OTHER_STREAMS, **last)
        resumed.metrics["stream_restarted"] = 1.0
    before, now = saved.get("optimizer_name", "adamw"), job.view.local.optimizer.name
    if saved["optimizer"] and before != now:
        saved["optimizer"] = None
        log.append(Kind.STATE_OF_OTHER_OPTIMIZER, **last, before=before, now=now)
        resumed.metrics["state_lost"] = 1.0
    return resumed
