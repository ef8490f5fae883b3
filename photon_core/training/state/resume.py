"""What a site's training goes on with: what its last aggregated round has left, or a local checkpoint.

Child processes only.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from photon_core.evidence.events import Kind, Log
from photon_core.training.callback import Progress
from photon_core.training.job import LocalJob
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import TRAINING, find


@dataclass
class Past:
    """What this training goes on with.

    Args:
        state: optimizer, stream, mix, random, samples, as local.py saves them; None where there is nothing to go
            on with.
        log: of the training, with what the operator should know about it.
        metrics: the same in numbers.
        progress: what has been trained of this round already.
        parameters: the model's, of a checkpoint; None at the start of a round.
        trail: samples.u32 so far.
    """

    state: dict[str, Any] | None
    log: Log = field(default_factory=lambda: Log(""))
    metrics: dict[str, float] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    parameters: dict[str, torch.Tensor] | None = None
    trail: bytes = b""

    @property
    def samples(self) -> int:
        """Samples trained in the rounds before this one."""
        return int(self.state["samples"]) if self.state else 0


def load_past(job: LocalJob, folder: Path, mix: str, checkpoints: Checkpoints, nodes: int = 1) -> Past:
    """The state to go on with; what is missing or no longer fits is said, never passed over.

    Args:
        job: what is to be trained.
        folder: the site's private one, or a node's.
        mix: hash of the streams' mix as it is now.
        checkpoints: the job's.
        nodes: that train apart now, of which each keeps a state of its own.
    """
    log = job.log()
    if saved := checkpoints.read(log):
        at = {"at": saved["progress"]["steps"], "steps": job.view.steps}
        if saved["state"]["mix"] == mix:
            for text in saved["notes"]:
                log.append(Kind.TRAINING_NOTED, text=text)
            log.append(Kind.CHECKPOINT_RESUMED, **at)
            return Past(
                saved["state"],
                log,
                {**saved["metrics"], "resumed_at_step": float(at["at"])},
                Progress(**saved["progress"]),
                saved["parameters"],
                saved["trail"].numpy().tobytes(),
            )
        log.append(Kind.CHECKPOINT_OF_OTHER_STREAMS, **at)
    return _load_state(job, folder, mix, nodes, log)


def _load_state(job: LocalJob, folder: Path, mix: str, nodes: int, log: Log) -> Past:
    """The private state that the site's last aggregated round has left."""
    if job.resume is None:
        return Past(None, log)
    round, attempt = job.resume
    last = {"last_round": round, "last_attempt": attempt}
    found = find(folder, round, attempt)
    try:
        saved = None if found is None else torch.load(found / TRAINING, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        log.append(Kind.STATE_LOST, **last)
        return Past(None, log, {"state_lost": 1.0})
    past = Past(saved, log)
    if (saved.get("nodes") or 1) != nodes:
        saved["optimizer"] = saved["stream"] = None
        log.append(Kind.STATE_OF_OTHER_NODES, **last, before=saved.get("nodes") or 1, now=nodes)
        past.metrics["state_lost"] = 1.0
    if saved["mix"] != mix:
        if at := saved["stream"]:  # an order of its own: the first samples are not trained on again
            saved["stream"] = {**at, "epoch": at["epoch"] + 1, "sample_in_epoch": 0}
        log.append(Kind.STATE_OF_OTHER_STREAMS, **last)
        past.metrics["stream_restarted"] = 1.0
    before, now = saved.get("optimizer_name", "adamw"), job.view.local.optimizer.name
    if saved["optimizer"] and before != now:
        saved["optimizer"] = None
        log.append(Kind.STATE_OF_OTHER_OPTIMIZER, **last, before=before, now=now)
        past.metrics["state_lost"] = 1.0
    return past
