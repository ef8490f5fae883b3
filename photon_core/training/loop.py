"""The work of one job: H local steps from theta, then the update and the private state.

Several processes may share it, a device each (see ranks.py): all make the steps, and the first one does the rest.
Child processes only.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from streaming import StreamingDataset

from photon_core.data.manifest import require_manifest
from photon_core.data.shared_memory import release
from photon_core.data.stream import stream_hash, train_dataset
from photon_core.errors import DataError
from photon_core.evidence.loggers import make_loggers
from photon_core.hardware.device import choose_device
from photon_core.model.decoder import PhotonModel, load_decoder
from photon_core.model.meters import ActivationNorm, StreamLosses
from photon_core.training.callback import RoundCallback
from photon_core.training.compiled import choose_score
from photon_core.training.evaluate import held_out_scores
from photon_core.training.exchange import Theta, read_moments, write_moments
from photon_core.training.finish import Clock, as_trained, encode, kept_state
from photon_core.training.job import LocalJob
from photon_core.training.metrics import round_metrics
from photon_core.training.micro_batch import at_once
from photon_core.training.optimizer.build import make_optimizer, parameter_names
from photon_core.training.optimizer.gradients import Gradients
from photon_core.training.parallel.ranks import Ranks
from photon_core.training.parallel.sharding import Trainee
from photon_core.training.state.checkpoint import Checkpoints, set_random_state
from photon_core.training.state.folder import SAMPLES, TRAINING
from photon_core.training.state.resume import Past, load_past
from photon_core.training.trainer import make_loader, make_trainer
from photon_core.update.trained import Trained


def work(
    job: LocalJob,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    micro_batch: int | str | None = None,
    ranks: Ranks | None = None,
) -> Trained | None:
    """Make the round's local steps and write the update and the private state; not yet under their final name.

    Args:
        job: what to train.
        report: as for `local.train`; called on the first rank alone.
        folder: the site's private one.
        written: where the update and the state go.
        checkpoints: the job's.
        micro_batch: sequences that go through the model at once on one device; None for all.
        ranks: the processes that share the work; None for this one alone.

    Returns:
        what was trained; None on every rank but the first.

    Raises:
        UpdateRejected: the loss, or another number of the training, is not finite.
        CorruptFile: theta's files are not the federation's model.
        DataError: the site is not prepared.
    """
    torch.set_num_threads(job.threads)
    view, clock, ranks = job.view, Clock(), ranks or Ranks()
    started = time.monotonic()
    scores: dict[str, float] = {}
    streams, data = view.streams, require_manifest(view)
    with clock.phase("load"):
        device = choose_device(view.local)
        theta = Theta(job.base_files, view.federation.model)
        mix = stream_hash(view)
        past = load_past(job, folder, mix, checkpoints)
        # with FSDP it comes onto the device block by block, when the Trainer has it
        place = "cpu" if ranks.sharded else device
        decoder = load_decoder(view.federation.model, past.parameters or theta.tensors(), place)
        activations = ActivationNorm()
        score = choose_score(view, device, ranks, past.notes)
        model = PhotonModel(decoder, len(streams) > 1, activations, score)
        optimizer = make_optimizer(decoder, view.local.optimizer)
        names = parameter_names(decoder, view.local.optimizer)
        trainee = Trainee(model, optimizer, names, ranks)
        progress, tokens_before = past.progress, past.progress.tokens
    with clock.phase("dataset"):
        dataset = train_dataset(view, view.federation.seed, ranks.size, ranks.wait)
    try:
        loader = make_loader(dataset, view.local.batch_size, device, ranks)
        if past.state and past.state["stream"]:
            loader.load_state_dict(past.state["stream"])
        with (written / SAMPLES if ranks.first else Path(os.devnull)).open("wb") as samples:
            samples.write(past.trail)

            def checkpoint() -> None:
                with clock.phase("checkpoint"):
                    parameters, moments = trainee.parameters(), trainee.state()
                    if ranks.first:
                        samples.flush()
                        state = kept_state(job, moments, loader.state_dict(), mix, past.samples)
                        _checkpoint(checkpoints, past, state, parameters, written / SAMPLES)

            gradients = _gradients(job, theta, model, device)
            meter = None
            if len(streams) > 1:
                counts = [int(count) for count in dataset.samples_per_stream]
                meter = StreamLosses([stream.name for stream in streams], counts, progress.streams)
            callback = RoundCallback(
                job, samples, report, checkpoint, progress, model, gradients, activations, meter, ranks
            )
            with clock.phase("trainer"):
                trainer = make_trainer(
                    view,
                    model,
                    loader,
                    optimizer,
                    [gradients, callback],
                    device=device,
                    global_step=job.global_step + progress.steps,
                    micro_batch=micro_batch,
                    loggers=make_loggers(view.local.loggers, folder / "log", first=ranks.first),
                    ranks=ranks,
                )
                _load_optimizer(job, trainee, past)
                if past.state:
                    set_random_state(past.state["random"])
            _fit(trainer, job.view.steps - progress.steps, clock)
        parameters, kept, stream = trainee.parameters(), trainee.state(), loader.state_dict()
        if not _take_leave(dataset, ranks):
            return None
        if view.local.evaluate and not ranks.sharded:  # the first rank alone may not hold the model
            with clock.phase("evaluate"), suppress(DataError):  # nothing is held out: the round's says it
                size = at_once(view.local, micro_batch, ranks.size)  # the optimizer is still on the device
                scores = held_out_scores(decoder, view, device, size)
        with clock.phase("encode"):
            update = encode(job, report, theta, parameters, past, folder, written)
        with clock.phase("save"):
            state = kept_state(job, kept, stream, mix, past.samples + progress.count)
            moments = []
            if view.local.optimizer_state == "average":
                size, dtype = view.federation.aggregation.shard_bytes, view.update.moments_dtype
                moments = write_moments(state["optimizer"], names, written, size, dtype)
            if view.local.optimizer_state == "reset":
                state["optimizer"] = None
            with (written / TRAINING).open("wb") as file:  # given a name, torch hides why a write has failed
                torch.save({**state, "feedback": update.feedback}, file)
    finally:
        if ranks.first:
            with clock.phase("dataset"):
                _close(dataset)
    metrics = {
        **round_metrics(job, progress),
        "tokens_per_second": (progress.tokens - tokens_before) / clock.seconds["fit"],
        "seconds": time.monotonic() - started,
        **({"micro_batch": float(micro_batch)} if isinstance(micro_batch, int) else {}),
        **({"devices": float(ranks.size)} if ranks.size > 1 else {}),
    }
    done = progress.tokens, progress.steps
    return as_trained(job, *done, metrics, scores, data.train_tokens, past, update, moments, clock, past.notes)


def _load_optimizer(job: LocalJob, trainee: Trainee, past: Past) -> None:
    """The moments of this round's checkpoint, else those averaged over the sites, else the site's own, if kept."""
    model, local, state = job.view.federation.model, job.view.local, None
    if past.parameters is not None:
        state = past.state and past.state["optimizer"]
    elif job.moment_files:
        state = read_moments(job.moment_files, trainee.names, model, local.optimizer, job.global_step)
    elif local.optimizer_state != "reset":
        state = past.state and past.state["optimizer"]
    if state:
        trainee.load(state)


def _gradients(job: LocalJob, theta: Theta, model: PhotonModel, device: str) -> Gradients:
    local = job.view.local
    start = []
    if local.proximal is not None:
        tensors = theta.tensors()
        start = [tensors[name].to(device) for name, _ in model.decoder.named_parameters()]
    return Gradients(local.clip_norm, local.proximal, start)


def _fit(trainer: Trainer, steps: int, clock: Clock) -> None:
    try:
        with clock.phase("fit"):
            trainer.fit(duration=f"{steps}ba")
    finally:
        with clock.phase("trainer"):
            trainer.close()


def _checkpoint(
    checkpoints: Checkpoints, past: Past, state: dict[str, Any], parameters: dict[str, torch.Tensor], trail: Path
) -> None:
    """Write a checkpoint; a disk that does not take it costs the checkpoint, not the round."""
    saved = {
        "state": {**state, "feedback": (past.state or {}).get("feedback")},
        "parameters": parameters,
        "progress": asdict(past.progress),
        "trail": torch.from_numpy(np.fromfile(trail, np.uint8)),
        "notes": past.notes,
        "metrics": past.metrics,
    }
    try:
        checkpoints.write(saved)
    except (OSError, RuntimeError) as error:
        note = f"a local checkpoint could not be written: {error}"
        if note not in past.notes:
            past.notes.append(note)


def _take_leave(dataset: StreamingDataset, ranks: Ranks) -> bool:
    """After the steps only the first rank goes on; the others give back what they hold of the dataset.

    Nobody may take a name back before the first rank has read the stream's state, nor after it has taken them all
    back, when they may be another dataset's.
    """
    ranks.wait()
    if not ranks.first:
        _close(dataset, whole=False)
    ranks.wait()
    return ranks.first


def _close(dataset: StreamingDataset, whole: bool = True) -> None:
    """End the dataset's threads, then give its shared memory back."""
    iterator = getattr(dataset, "_iterator", None)
    if iterator is not None:
        iterator.exit()
    release(dataset, whole)
