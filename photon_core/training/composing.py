"""Composer's Trainer, put together for one round of one site. Child processes only.

Kept lean on purpose: no schedulers (Composer's lag a batch and restart with each Trainer), no checkpoints, no
console or progress bar, two callbacks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, DataSpec, Timestamp, Trainer
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.errors import PhotonError
from photon_core.training.model import PhotonModel
from schemas.federation import Federation
from schemas.local import Logger as LoggerSection

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


def make_loggers(sections: list[LoggerSection], folder: Path, key: str = "local.loggers") -> list[Any]:
    """Composer's own loggers, as the federation file lists them.

    Args:
        sections: of the file.
        folder: where those that write files put them, unless their options say otherwise.
        key: where they stand in the file, for the message.

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
            options.setdefault("tracking_uri", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        try:
            made.append(getattr(composer.loggers, LOGGERS[section.name])(**options))
        except (ImportError, TypeError) as error:
            raise PhotonError(f"{key}: cannot start '{section.name}': {error}") from error
    return made


def make_trainer(
    federation: Federation,
    site: str,
    model: PhotonModel,
    loader: StreamingDataLoader,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[Callback],
    *,
    device: str,
    global_step: int,
    micro_batch: int | None,
    loggers: list[Any],
) -> Trainer:
    """A Trainer whose clock stands at the global step, to be run by fit(duration="<steps>ba")."""
    local = federation.local
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch["tokens"].numel()),
        optimizers=optimizer,
        callbacks=list(callbacks),
        device_train_microbatch_size=micro_batch,
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
