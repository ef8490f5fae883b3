"""What a site's training goes on with: what its last aggregated round has left, or a local checkpoint.

Child processes only.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

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
        notes: what the operator should know about it.
        metrics: the same in numbers.
        progress: what has been trained of this round already.
        parameters: the model's, of a checkpoint; None at the start of a round.
        trail: samples.u32 so far.
    """

    state: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
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
    notes: list[str] = []
    if saved := checkpoints.read(notes):
        step = saved["progress"]["steps"]
        name = f"site '{job.view.name}': the local checkpoint at step {step} of {job.view.steps}"
        if saved["state"]["mix"] == mix:
            return Past(
                saved["state"],
                [*saved["notes"], f"{name} was gone on from after an interruption"],
                {**saved["metrics"], "resumed_at_step": float(step)},
                Progress(**saved["progress"]),
                saved["parameters"],
                saved["trail"].numpy().tobytes(),
            )
        notes.append(f"{name} belongs to another mix of streams: the round's training starts afresh")
    past = _load_state(job, folder, mix, nodes)
    past.notes[:0] = notes
    return past


def _load_state(job: LocalJob, folder: Path, mix: str, nodes: int) -> Past:
    """The private state that the site's last aggregated round has left."""
    if job.resume is None:
        return Past(None)
    round, attempt = job.resume
    name = f"site '{job.view.name}': the private state of round {round}, attempt {attempt}"
    found = find(folder, round, attempt)
    try:
        saved = None if found is None else torch.load(found / TRAINING, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        note = f"{name} is missing or damaged: optimizer state and data stream start afresh"
        return Past(None, [note], {"state_lost": 1.0})
    past = Past(saved)
    if (saved.get("nodes") or 1) != nodes:
        saved["optimizer"] = saved["stream"] = None
        past.notes.append(
            f"{name} belongs to another number of nodes that train apart ({saved.get('nodes') or 1}, now "
            f"{nodes}): optimizer state and data stream start afresh"
        )
        past.metrics["state_lost"] = 1.0
    if saved["mix"] != mix:
        if at := saved["stream"]:  # an order of its own: the first samples are not trained on again
            saved["stream"] = {**at, "epoch": at["epoch"] + 1, "sample_in_epoch": 0}
        past.notes.append(f"{name} belongs to another mix of streams: the data stream begins a new epoch")
        past.metrics["stream_restarted"] = 1.0
    before, now = saved.get("optimizer_name", "adamw"), job.view.local.optimizer.name
    if saved["optimizer"] and before != now:
        saved["optimizer"] = None
        past.notes.append(f"{name} belongs to the optimizer {before}: the state of {now} starts afresh")
        past.metrics["state_lost"] = 1.0
    return past
