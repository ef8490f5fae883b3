"""The end of local training: the encoded update, the private state, and the result with its metrics."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from photon_core.errors import UpdateRejected
from photon_core.evidence.events import incidents_of
from photon_core.evidence.metrics import find
from photon_core.run.sampling import TOKENS
from photon_core.training.exchange import Theta, Written, post_process, write_update
from photon_core.training.job import LocalJob
from photon_core.training.parallel.sharding import State
from photon_core.training.state.checkpoint import get_random_state
from photon_core.training.state.resume import Resumed
from photon_core.update.post_process import noise_generator
from photon_core.update.trained import Trained
from schemas.bounds import LARGEST_NUMBER
from schemas.manifests import FileEntry

NOISE_KEY = "noise.key"


class Clock:
    """The seconds spent, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True)
class Outcome:
    """The outcome of a round's local training.

    Args:
        tokens, steps: numbers of trained tokens and local steps.
        metrics: metrics of the training.
        scores: scores of the trained model on the site's held-out text; empty if it was not evaluated.
        data_tokens: tokens that the site has prepared for training.
        update: update on the site's disk.
        moments: files of the optimizer's moments, if the sites average them.
    """

    tokens: int
    steps: int
    metrics: Mapping[str, float]
    scores: Mapping[str, float]
    data_tokens: int
    update: Written
    moments: list[FileEntry]


def as_trained(job: LocalJob, resumed: Resumed, outcome: Outcome, seconds: dict[str, float]) -> Trained:
    """The result of the training, for the launching process. The notes are also printed to the site's log.

    Args:
        job: training job.
        resumed: state that training resumed from.
        outcome: outcome of the training.
        seconds: time by phase.

    Raises:
        UpdateRejected: a metric is not finite, or larger than a manifest can hold.
    """
    notes = incidents_of(resumed.log)
    for note in notes:
        print(note)
    sampled_by_tokens = job.view.federation.rounds.sampling == "tokens"
    metrics = {
        **outcome.metrics,
        **outcome.update.metrics,
        **{f"valid_{name}": value for name, value in outcome.scores.items() if name != "perplexity"},
        **({TOKENS: float(outcome.data_tokens)} if sampled_by_tokens else {}),
        **resumed.metrics,
    }
    for name, value in metrics.items():
        assert find(name, "training"), f"metric '{name}' is not in photon_core/evidence/metrics.py"
        if not abs(value) <= LARGEST_NUMBER:
            raise UpdateRejected(job.view.name, f"training diverged: its metric '{name}' is {value}")
    return Trained(
        round=job.round,
        attempt=job.attempt,
        base_sha256=job.base_sha256,
        codec=outcome.update.codec,
        tokens=outcome.tokens,
        steps=outcome.steps,
        metrics=metrics,
        files=outcome.update.files,
        folder="",
        seconds=seconds,
        notes=[note.fact for note in notes],
        moments=outcome.moments,
        key_layers=outcome.update.key_layers,
        entry_sha256=job.entry_sha256,
        entry=job.entry,
    )


def encode(
    job: LocalJob,
    report: Callable[[dict[str, Any]], None],
    theta: Theta,
    parameters: Mapping[str, torch.Tensor],
    resumed: Resumed,
    folder: Path,
    written: Path,
) -> Written:
    """Clip, noise and encode the trained parameters (PostProcess), and write the update.

    Args:
        job: training job.
        report: callback for every finished shard, if the job announces them.
        theta: parameters before training.
        parameters: parameters after training.
        resumed: state that training resumed from; it has the residuals of the previous update.
        folder: private folder of the site.
        written: output folder.
    """
    settings = job.view.update
    noise = None
    if settings.noise_multiplier:
        digest = blake3()  # of the parameters: a time limit, or a GPU, may give the same job another result
        for name in sorted(parameters):
            digest.update(parameters[name].detach().cpu().contiguous().numpy().data.cast("B"))
        noise = noise_generator(folder / "state" / NOISE_KEY, f"{job.key} {job.attempt} {digest.hexdigest()}")
    feedback, shard_bytes = (resumed.state or {}).get("feedback"), job.view.federation.aggregation.shard_bytes
    ready = (lambda entry: report({"file": str(written / entry.path)})) if job.announce else None
    process = post_process(theta, parameters, settings, feedback, noise)
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    return write_update(process, shapes, written, shard_bytes, ready, job.key_layers)


def kept_state(
    job: LocalJob, moments: State | None, stream: dict[str, Any] | None, mix: str, samples: int
) -> dict[str, Any]:
    """The state that the next round resumes from, without the codec's error feedback."""
    return {
        "optimizer": moments,
        "optimizer_name": job.view.local.optimizer.name,
        "stream": stream,
        "mix": mix,  # the stream's own state does not name its streams
        "random": get_random_state(),
        "samples": samples,
    }
