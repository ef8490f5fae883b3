"""Composer's Trainer, configured for one round of one site. Child processes only.

It is lean on purpose: no schedulers (Composer's lag by a batch and restart with each Trainer), no checkpoints, no
console or progress bar, two callbacks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from composer import Callback, DataSpec, Timestamp, Trainer
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.training.parallel.ranks import TIMEOUT, Ranks
from photon_core.training.parallel.sharding import TrainState, parallelism
from schemas.view import SiteView


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Samples of the merged stream -> {"tokens": int64 (B, T), "id": int64 (B,)}."""
    return {
        "tokens": torch.from_numpy(np.stack([sample["tokens"] for sample in samples])),
        "id": torch.tensor([sample["id"] for sample in samples]),
    }


def collate_share(samples: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """One rank's share of a batch, and "ids", int64 (global B,), of all ranks' samples.

    "ids" comes first, because the loader counts samples by it. A rank without a share of an epoch's last batch
    trains on another rank's sample, which has no weight ("empty"): all ranks must take part in the exchange of
    gradients.
    """
    mine = samples[ranks.share(len(samples))]
    ids = torch.tensor([sample["id"] for sample in samples])
    return {"ids": ids, **collate(mine or samples[:1]), "empty": not mine, "ranks": ranks.size}


def split_share(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The micro-batches of a rank's share, as many as of the largest share: FSDP exchanges in each of them."""
    shares = zip(batch["tokens"].split(size), batch["id"].split(size), strict=True)
    parts = [{"tokens": tokens, "id": ids, "empty": batch["empty"]} for tokens, ids in shares]
    largest = -(-len(batch["ids"]) // batch["ranks"])
    filling = {"tokens": batch["tokens"][:1], "id": batch["id"][:1], "empty": True}
    return parts + [filling] * (-(-largest // size) - len(parts))


def count_samples(batch: dict[str, Any]) -> int:
    """The number of samples that count; Composer weights each rank's gradients by it."""
    return 0 if batch.get("empty") else len(batch["id"])


def make_loader(
    dataset: StreamingDataset, batch_size: int, device: str, ranks: Ranks | None = None
) -> StreamingDataLoader:
    """The batches of the stream. The last batch of an epoch is smaller, so that every sample is used.

    Args:
        dataset: dataset of this rank.
        batch_size: sequences of a batch, of all ranks together.
        device: cpu or cuda.
        ranks: processes that share each batch; None for this process alone.
    """
    # reading is hundreds of times faster than training, so the start of workers would not pay
    return StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=0,
        collate_fn=collate if ranks is None or ranks.size == 1 else partial(collate_share, ranks=ranks),
        pin_memory=device == "cuda",
        # each pass draws a seed that only workers use; drawn from the global generator, it would make an
        # interrupted training differ from an uninterrupted one
        generator=torch.Generator(),
    )


def make_trainer(
    view: SiteView,
    train_state: TrainState,
    loader: StreamingDataLoader,
    callbacks: Sequence[Callback],
    *,
    global_step: int,
    micro_batch: int | str | None,
    loggers: list[Any],
) -> Trainer:
    """A Trainer whose clock is at the global step, for fit(duration="<steps>ba").

    Args:
        view: site with its settings.
        train_state: model and optimizer.
        loader: loader of the batches.
        callbacks: callbacks in the order of their calls.
        global_step: local steps before this training.
        micro_batch: sequences per forward pass on one device; None for all.
        loggers: loggers of Composer.
    """
    ranks = train_state.ranks
    shared = ranks.size > 1
    data = DataSpec(
        loader,
        split_batch=split_share if shared else None,
        get_num_samples_in_batch=count_samples if shared else None,
        get_num_tokens_in_batch=lambda batch: batch["tokens"].numel(),
    )
    trainer = Trainer(
        model=train_state.model,
        train_dataloader=data,
        optimizers=train_state.optimizer,
        callbacks=list(callbacks),
        device_train_microbatch_size=micro_batch,
        loggers=loggers,
        run_name=f"{view.federation.run}-{view.name}",
        seed=view.federation.seed,
        device="gpu" if ranks.device == "cuda" else "cpu",
        precision=view.local.precision,
        progress_bar=False,
        spin_dataloaders=False,
        save_folder=None,
        save_latest_filename=None,
        parallelism_config=parallelism(ranks),
        dist_timeout=TIMEOUT,
    )
    trainer.state.timestamp = Timestamp(batch=global_step)
    return trainer
