"""Composer's Trainer, put together for one round of one site. Child processes only.

Kept lean on purpose: no schedulers (Composer's lag a batch and restart with each Trainer), no checkpoints, no
console or progress bar, one callback.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from composer import Callback, DataSpec, Logger, State, Timestamp, Trainer
from composer.algorithms import GradientClipping
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.errors import PhotonError, UpdateRejected
from photon_core.training.model import PhotonModel
from photon_core.training.schedule import learning_rate
from schemas.federation import Federation
from schemas.federation import Logger as LoggerSection

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
        dataset, batch_size=batch_size, num_workers=0, collate_fn=collate, pin_memory=device == "cuda"
    )


def make_optimizer(model: PhotonModel, federation: Federation) -> torch.optim.AdamW:
    section = federation.local.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,
    )


class RoundCallback(Callback):
    """Sets the learning rate of every step, notes the samples, and reports.

    Args:
        federation: the federation file.
        site: for the error when training diverges.
        samples: binary file that sample ids are appended to, as little-endian uint32.
        report: called with step, steps, loss, tokens, tokens_per_second; at most once a second, and at the end.
    """

    def __init__(
        self, federation: Federation, site: str, samples: BinaryIO, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.local = federation.local
        self.total_steps = federation.schedule_steps
        self.site = site
        self.samples = samples
        self.report = report
        self.steps = self.tokens = self.count = 0
        self.loss_sum = self.last_loss = 0.0
        self.started = self.reported = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self.started = self.reported = time.monotonic()

    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        rate = learning_rate(step, self.local.optimizer, self.local.schedule, self.total_steps)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        if logger.destinations:
            logger.log_metrics({"learning_rate": rate})

    def batch_end(self, state: State, logger: Logger) -> None:
        batch = state.batch
        loss = state.total_loss_dict["loss/train/total"]
        if not math.isfinite(loss):
            raise UpdateRejected(
                self.site, f"training diverged: the loss of local step {self.steps + 1} is {loss}"
            )
        tokens = batch["tokens"].numel()
        self.samples.write(batch["id"].numpy().astype("<u4").tobytes())
        self.steps += 1
        self.tokens += tokens
        self.count += len(batch["id"])
        self.loss_sum += loss * tokens
        self.last_loss = loss
        now = time.monotonic()
        if self.steps == self.local.steps or now - self.reported > REPORT_SECONDS:
            self.reported = now
            self.report(
                {
                    "step": self.steps,
                    "steps": self.local.steps,
                    "loss": loss,
                    "tokens": self.tokens,
                    "tokens_per_second": self.tokens / max(now - self.started, 1e-9),
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
