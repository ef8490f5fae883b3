"""The callback of a site's local training: learning rate, samples, measurements, reports, checkpoints.

Child processes only.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from composer import Callback, Logger, State
from typing_extensions import override

from photon_core.errors import UpdateRejected
from photon_core.model.decoder import PhotonModel
from photon_core.model.meters import ActivationNorm, StreamLosses
from photon_core.training.job import LocalJob
from photon_core.training.optimizer.build import peak_rates
from photon_core.training.optimizer.gradients import Gradients
from photon_core.training.optimizer.schedule import learning_rate
from photon_core.training.parallel.ranks import Ranks

REPORT_SECONDS = 1.0


@dataclass
class Progress:
    """The progress of a round's local training.

    Args:
        steps: local steps made.
        tokens: tokens trained.
        count: samples trained.
        loss_sum: sum over the steps of mean loss times tokens.
        first_loss: mean loss of the first step, which is theta's loss; None if a checkpoint does not have it.
        last_loss: mean loss of the last step.
        seconds: time of the steps.
        gradient_norms, activation_norms: sums over the steps.
        streams: sums of the samples' losses by stream, as [loss, samples]; empty for a site with one stream.
    """

    steps: int = 0
    tokens: int = 0
    count: int = 0
    loss_sum: float = 0.0
    first_loss: float | None = None
    last_loss: float = 0.0
    seconds: float = 0.0
    gradient_norms: float = 0.0
    activation_norms: float = 0.0
    streams: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Meters:
    """The meters of the local steps.

    Args:
        model: model in training; it keeps each sample's loss for `losses`.
        gradients, activations: meters of the norms.
        losses: meter of each stream's loss at a site with several streams; else None.
    """

    model: PhotonModel
    gradients: Gradients
    activations: ActivationNorm
    losses: StreamLosses | None


class RoundCallback(Callback):
    """Sets the learning rate of every step, records the samples, measures, reports, and triggers checkpoints.

    Args:
        job: training job. Training ends early when the job's time limit has passed, but makes at least one step.
        samples: binary file that the samples' numbers are appended to, as little-endian uint32. They run over the
            training splits of all the site's streams, in the order of the federation file.
        report: callback with step, steps, loss, tokens, tokens_per_second; at most once a second, and at the end.
        checkpoint: callback between two steps, every `local.checkpoint_steps` steps.
        progress: progress of the interrupted process that this one resumes.
        meters: meters of each step.
        ranks: processes that share the work; None for this process alone. The measurements of all ranks are added
            up, so that all know the same progress and stop at the same step.
    """

    def __init__(
        self,
        job: LocalJob,
        samples: BinaryIO,
        report: Callable[[dict[str, Any]], None],
        checkpoint: Callable[[], None],
        progress: Progress,
        meters: Meters,
        ranks: Ranks | None = None,
    ) -> None:
        self.job = job
        self.local = job.view.local
        self.peaks = peak_rates(self.local.optimizer)
        self.total_steps = job.view.federation.schedule_steps
        self.samples = samples
        self.report = report
        self.checkpoint = checkpoint
        self.progress = progress
        self.meters = meters
        self.ranks = ranks or Ranks()
        self.tokens_before = progress.tokens
        self.seconds_before = progress.seconds
        self.started = self.reported = 0.0

    @override
    def fit_start(self, state: State, logger: Logger) -> None:
        self.started = self.reported = time.monotonic()

    @override
    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        for group, peak in zip(state.optimizers[0].param_groups, self.peaks, strict=True):
            group["lr"] = rate = learning_rate(step, peak, self.local.schedule, self.total_steps)
        if logger.destinations:
            logger.log_metrics({"learning_rate": rate})

    @override
    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Reset the meters. Composer's own search for a micro-batch restarts a batch that ran out of memory."""
        if self.meters.losses is not None:
            self.meters.model.take_losses()
        self.meters.activations.take()

    @override
    def batch_end(self, state: State, logger: Logger) -> None:
        loss, now = state.total_loss_dict["loss/train/total"], time.monotonic()
        self._count(state, loss)
        progress, limit = self.progress, self.job.view.time_limit
        last, interval = progress.steps == self.job.view.steps, self.local.checkpoint_steps
        if limit is not None and progress.seconds >= limit and not last:
            last = True
            state.stop_training()
        if interval is not None and progress.steps % interval == 0 and not last:
            self.checkpoint()
        if self.ranks.first and (last or now - self.reported > REPORT_SECONDS):
            self.reported = now
            self.report(
                {
                    "step": progress.steps,
                    "steps": self.job.view.steps,
                    "loss": loss,
                    "tokens": progress.tokens,
                    "tokens_per_second": (progress.tokens - self.tokens_before) / max(now - self.started, 1e-9),
                }
            )

    def _count(self, state: State, loss: float) -> None:
        """Add the step that has just been made to the progress.

        Raises:
            UpdateRejected: its loss (Composer's mean over all ranks), or its gradients' norm, is not finite.
        """
        batch, progress, norm = state.batch, self.progress, float(self.meters.gradients.norm)
        for what, value in (("loss", loss), ("gradients' norm", norm)):
            if not math.isfinite(value):
                reason = f"training diverged: the {what} of local step {progress.steps + 1} is {value}"
                raise UpdateRejected(self.job.view.name, reason)
        numbers = batch["id"] if self.ranks.size == 1 else batch["ids"]
        seconds, (norms, norm_tokens), losses = self._measured(len(numbers))
        tokens = len(numbers) * batch["tokens"].shape[1]
        self.samples.write(numbers.numpy().astype("<u4").tobytes())
        if not progress.steps:
            progress.first_loss = loss
        progress.steps += 1
        progress.tokens += tokens
        progress.count += len(numbers)
        progress.loss_sum += loss * tokens
        progress.last_loss = loss
        progress.seconds = self.seconds_before + seconds
        progress.gradient_norms += norm
        progress.activation_norms += norms / norm_tokens
        if self.meters.losses is not None:
            self.meters.losses.add(numbers.tolist(), losses)

    def _measured(self, count: int) -> tuple[float, tuple[float, float], list[float]]:
        """The measurements of all ranks together.

        Returns:
            seconds since the start, by the first rank's clock; sum and number of the activation norms; for a site
            with several streams the losses of the `count` samples of the whole batch.
        """
        seconds, norms = time.monotonic() - self.started, self.meters.activations.take()
        losses = [] if self.meters.losses is None else self.meters.model.take_losses()
        if self.ranks.size == 1:
            return seconds, norms, losses
        values = np.zeros(3 + (count if self.meters.losses is not None else 0))
        if self.ranks.first:
            values[0] = seconds
        values[1:3] = norms
        if losses:
            values[3:][self.ranks.share(count)] = losses
        values = self.ranks.sum(values)
        return float(values[0]), (float(values[1]), float(values[2])), values[3:].tolist()
