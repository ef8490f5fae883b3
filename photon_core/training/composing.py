"""Composer's Trainer, put together for one round of one site. Child processes only.

Kept lean on purpose: no schedulers (Composer's lag a batch and restart with each Trainer), no checkpoints, no
console or progress bar, one callback.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from composer import Callback, DataSpec, Logger, State, Timestamp, Trainer
from composer.algorithms import GradientClipping
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.errors import PhotonError, UpdateRejected
from photon_core.training.model import PhotonModel
from photon_core.training.optimizers import peak_rates
from photon_core.training.schedule import learning_rate
from schemas.federation import Federation
from schemas.local import Logger as LoggerSection

REPORT_SECONDS = 1.0
LOGGERS = {
    "tensorboard": "TensorboardLogger",
    "mlflow": "MLFlowLogger",
    "wandb": "WandBLogger",
    "file": "FileLogger",
}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Samples of the merged stream -> {"tokens": int64 (B, T), "id": int64 (B,)}."""
    return {
        "tokens": torch.from_numpy(np.stack([sample["tokens"] for sample in samples])),
        "id": torch.tensor([sample["id"] for sample in samples]),
    }


def make_loader(dataset: StreamingDataset, batch_size: int, device: str) -> StreamingDataLoader:
    """Batches of the stream; the last of an epoch is smaller, so that no sample is left out."""
    # reading is hundreds of times faster than training: workers would only cost their start
    return StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=0,
        collate_fn=collate,
        pin_memory=device == "cuda",
        # each pass draws a seed that only workers use: from the global generator, it would tell a training that
        # was interrupted from one that was not
        generator=torch.Generator(),
    )


@dataclass
class Progress:
    """How far a round's local training has come.

    Args:
        steps: local steps made.
        tokens: tokens trained.
        count: samples trained.
        loss_sum: sum over the steps of mean loss times tokens.
        last_loss: mean loss of the last step.
    """

    steps: int = 0
    tokens: int = 0
    count: int = 0
    loss_sum: float = 0.0
    last_loss: float = 0.0


class RoundCallback(Callback):
    """Sets the learning rate of every step, notes the samples, reports, and asks for checkpoints.

    Args:
        federation: the federation file.
        site: for the error when training diverges.
        samples: binary file that the samples' numbers (see photon_core.data.trail) are appended to, as
            little-endian uint32.
        report: called with step, steps, loss, tokens, tokens_per_second; at most once a second, and at the end.
        checkpoint: called between two steps, every `local.checkpoint_steps` steps.
        progress: what has been trained already, by the process that this one goes on for.
    """

    def __init__(
        self,
        federation: Federation,
        site: str,
        samples: BinaryIO,
        report: Callable[[dict[str, Any]], None],
        checkpoint: Callable[[], None],
        progress: Progress,
    ) -> None:
        self.local = federation.local
        self.peaks = peak_rates(federation.local.optimizer)
        self.total_steps = federation.schedule_steps
        self.site = site
        self.samples = samples
        self.report = report
        self.checkpoint = checkpoint
        self.progress = progress
        self.tokens_before = progress.tokens
        self.started = self.reported = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self.started = self.reported = time.monotonic()

    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        for group, peak in zip(state.optimizers[0].param_groups, self.peaks, strict=True):
            group["lr"] = rate = learning_rate(step, peak, self.local.schedule, self.total_steps)
        if logger.destinations:
            logger.log_metrics({"learning_rate": rate})

    def batch_end(self, state: State, logger: Logger) -> None:
        batch, progress = state.batch, self.progress
        loss = state.total_loss_dict["loss/train/total"]
        if not math.isfinite(loss):
            raise UpdateRejected(
                self.site, f"training diverged: the loss of local step {progress.steps + 1} is {loss}"
            )
        tokens = batch["tokens"].numel()
        self.samples.write(batch["id"].numpy().astype("<u4").tobytes())
        progress.steps += 1
        progress.tokens += tokens
        progress.count += len(batch["id"])
        progress.loss_sum += loss * tokens
        progress.last_loss = loss
        last, interval = progress.steps == self.local.steps, self.local.checkpoint_steps
        if interval is not None and progress.steps % interval == 0 and not last:
            self.checkpoint()
        now = time.monotonic()
        if last or now - self.reported > REPORT_SECONDS:
            self.reported = now
            self.report(
                {
                    "step": progress.steps,
                    "steps": self.local.steps,
                    "loss": loss,
                    "tokens": progress.tokens,
                    "tokens_per_second": (progress.tokens - self.tokens_before) / max(now - self.started, 1e-9),
                }
            )


def make_loggers(sections: list[LoggerSection], folder: Path) -> list[Any]:
    """Composer's own loggers, as the federation file lists them.

    Args:
        sections: of `local.loggers`.
        folder: where those that write files put them, unless their options say otherwise.

    Raises:
        PhotonError: a logger's package is not installed, or its options are not the logger's.
    """
    made = []
    for section in sections:
        import composer.loggers

        options = dict(section.options)
        if section.name == "tensorboard":
            options.setdefault("log_dir", str(folder / "tensorboard"))
        elif section.name == "file":
            options.setdefault("filename", str(folder / "composer-{run_name}.log"))
        elif section.name == "mlflow":
            options.setdefault("tracking_uri", str(folder / "mlflow"))
        try:
            made.append(getattr(composer.loggers, LOGGERS[section.name])(**options))
        except (ImportError, TypeError) as error:
            raise PhotonError(f"local.loggers: cannot start '{section.name}': {error}") from error
    return made


def make_trainer(
    federation: Federation,
    site: str,
    model: PhotonModel,
    loader: StreamingDataLoader,
    optimizer: torch.optim.Optimizer,
    callback: Callback,
    *,
    device: str,
    global_step: int,
    loggers: list[Any],
) -> Trainer:
    """A Trainer whose clock stands at the global step, to be run by fit(duration="<steps>ba")."""
    local = federation.local
    clipping = [GradientClipping("norm", local.clip_norm)] if local.clip_norm is not None else []
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch["tokens"].numel()),
        optimizers=optimizer,
        algorithms=clipping,
        callbacks=callback,
        loggers=loggers,
        run_name=f"{federation.run}-{site}",
        seed=federation.seed,
        device="gpu" if device == "cuda" else "cpu",
        precision=local.precision,
        progress_bar=False,
        spin_dataloaders=False,
        save_folder=None,
        save_latest_filename=None,
    )
    trainer.state.timestamp = Timestamp(batch=global_step)
    return trainer
