"""One site's local training for one round: theta in, an encoded update and a private state out.

Runs in a child process (see launch.py): Composer replaces signal handlers, a second fit() skips data, and a
dataset holds shared memory and threads for the life of its process.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.data.manifest import require_manifest
from photon_core.data.paths import state_dir
from photon_core.data.stream import release, stream_hash, train_dataset
from photon_core.errors import DataError, UpdateRejected
from photon_core.sampling import TOKENS
from photon_core.training.checkpoint import Checkpoints
from photon_core.training.composing import make_loader, make_loggers, make_trainer
from photon_core.training.device import choose_device
from photon_core.training.evaluate import held_out_scores
from photon_core.training.gradients import Gradients
from photon_core.training.job import LocalJob, Trained
from photon_core.training.meter import ActivationNorm, StreamLosses
from photon_core.training.metrics import round_metrics
from photon_core.training.micro_batch import find_micro_batch
from photon_core.training.model import PhotonModel, load_decoder
from photon_core.training.moments import read_moments, write_moments
from photon_core.training.optimizers import make_optimizer, parameter_names
from photon_core.training.past import Past, load_past
from photon_core.training.random_state import get_random_state, set_random_state
from photon_core.training.round_callback import RoundCallback
from photon_core.training.state import SAMPLES, TRAINING, exclusive, find_result, publish, writing
from photon_core.training.weights import Theta, Written, write_update
from photon_core.update.post_process import noise_generator

NOISE_KEY = "noise.key"


class Clock:
    """Seconds spent, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def train(job: LocalJob, report: Callable[[dict[str, Any]], None]) -> Trained:
    """Train theta for the round's local steps and leave the update and the private state on the site's disk.

    Safe to repeat: a finished training of the same job is returned as it is, and one that was killed goes on
    from its last local checkpoint, to the same result bit for bit.

    Args:
        job: what to train.
        report: called about once a second with step, steps, loss, tokens and tokens_per_second; if the job wants
            it, also with every finished shard's path.

    Raises:
        UpdateRejected: the loss is not finite.
        CorruptFile: theta's files are not the federation's model.
        DataError: the site is not prepared.
    """
    torch.set_num_threads(job.threads)
    folder = state_dir(job.federation, job.site).absolute()
    checkpoints = Checkpoints(folder, job)
    with exclusive(folder):
        trained = find_result(folder, job.round, job.attempt, job.key)
        if trained is None:
            with _temporary_folder(), writing(folder) as written:
                try:
                    trained = _train(job, report, folder, written, checkpoints)
                except UpdateRejected:
                    checkpoints.drop()  # going on would only diverge again
                    raise
                trained = publish(folder, written, trained, job.key)
        checkpoints.drop()
        return trained


def _train(
    job: LocalJob,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
) -> Trained:
    federation, clock = job.federation, Clock()
    started = time.monotonic()
    scores: dict[str, float] = {}
    streams, data = federation.site(job.site).streams, require_manifest(federation, job.site)
    micro_batch = find_micro_batch(federation, job.site, folder)  # before this process touches a GPU
    with clock.phase("load"):
        device = choose_device(federation.local)
        theta = Theta(job.base_files, federation.model)
        mix = stream_hash(federation, job.site)
        past = load_past(job, folder, mix, checkpoints)
        decoder = load_decoder(federation.model, past.parameters or theta.tensors(), device)
        model = PhotonModel(decoder, by_sample=len(streams) > 1)
        optimizer = make_optimizer(decoder, federation.local.optimizer)
        names = parameter_names(decoder, federation.local.optimizer)
        _load_optimizer(job, optimizer, past, names)
        progress, tokens_before = past.progress, past.progress.tokens
    with clock.phase("dataset"):
        dataset = train_dataset(federation, job.site, federation.seed)
    try:
        loader = make_loader(dataset, federation.local.batch_size, device)
        if past.state and past.state["stream"]:
            loader.load_state_dict(past.state["stream"])
        with (written / SAMPLES).open("wb") as samples:
            samples.write(past.trail)

            def checkpoint() -> None:
                samples.flush()
                state = _state(job, optimizer, loader, mix, past.samples)
                with clock.phase("checkpoint"):
                    _checkpoint(checkpoints, past, state, model, written / SAMPLES)

            gradients = _gradients(job, theta, model, device)
            meter = None
            if len(streams) > 1:
                counts = [int(count) for count in dataset.samples_per_stream]
                meter = StreamLosses([stream.name for stream in streams], counts, progress.streams)
            activations = ActivationNorm(decoder.norm_f)
            callback = RoundCallback(
                job, samples, report, checkpoint, progress, model, gradients, activations, meter
            )
            with clock.phase("trainer"):
                trainer = make_trainer(
                    federation,
                    job.site,
                    model,
                    loader,
                    optimizer,
                    [gradients, callback],
                    device=device,
                    global_step=job.global_step + progress.steps,
                    micro_batch=micro_batch,
                    loggers=make_loggers(federation.local.loggers, folder / "log"),
                )
                if past.state:
                    set_random_state(past.state["random"])
            _fit(trainer, job.steps - progress.steps, clock)
        if federation.local.evaluate:
            with (
                clock.phase("evaluate"),
                suppress(DataError),
            ):  # nothing is held out: the round's evaluation says it
                scores = held_out_scores(decoder, federation, job.site, device)
        with clock.phase("encode"):
            update = _encode(job, report, theta, model, past, folder, written)
        with clock.phase("save"):
            state = _state(job, optimizer, loader, mix, past.samples + progress.count)
            moments = []
            if federation.local.optimizer_state == "average":
                moments = write_moments(state["optimizer"], names, written)
            if federation.local.optimizer_state == "reset":
                state["optimizer"] = None
            with (written / TRAINING).open("wb") as file:  # given a name, torch hides why a write has failed
                torch.save({**state, "feedback": update.feedback}, file)
    finally:
        with clock.phase("dataset"):
            _close(dataset)
    for note in past.notes:
        print(note)
    metrics = {
        **round_metrics(job, progress),
        "tokens_per_second": (progress.tokens - tokens_before) / clock.seconds["fit"],
        "seconds": time.monotonic() - started,
        **update.metrics,
        **{f"valid_{name}": scores[name] for name in ("loss", "tokens") if name in scores},
        **({TOKENS: float(data.train_tokens)} if federation.rounds.sampling == "tokens" else {}),
        **({"micro_batch": float(micro_batch)} if micro_batch else {}),
        **past.metrics,
    }
    return Trained(
        round=job.round,
        attempt=job.attempt,
        base_sha256=job.base_sha256,
        codec=update.codec,
        tokens=progress.tokens,
        steps=progress.steps,
        metrics=metrics,
        files=update.files,
        folder="",
        seconds=clock.seconds,
        notes=past.notes,
        moments=moments,
    )


def _encode(
    job: LocalJob,
    report: Callable[[dict[str, Any]], None],
    theta: Theta,
    model: PhotonModel,
    past: Past,
    folder: Path,
    written: Path,
) -> Written:
    """PostProcess: what was trained becomes what is sent; what the codec loses goes on from the last update."""
    settings = job.federation.update
    noise = None
    if settings.noise_multiplier:
        noise = noise_generator(folder / "state" / NOISE_KEY, f"{job.key} {job.attempt}")
    parameters = dict(model.decoder.named_parameters())
    feedback, shard_bytes = (past.state or {}).get("feedback"), job.federation.aggregation.shard_bytes
    ready = (lambda entry: report({"file": str(written / entry.path)})) if job.announce else None
    return write_update(theta, parameters, written, settings, feedback, noise, shard_bytes, ready)


def _load_optimizer(job: LocalJob, optimizer: torch.optim.Optimizer, past: Past, names: list[str]) -> None:
    """The moments of this round's checkpoint, else those averaged over the sites, else the site's own, if kept."""
    local, state = job.federation.local, None
    if past.parameters is not None:
        state = past.state and past.state["optimizer"]
    elif job.moment_files:
        state = read_moments(job.moment_files, names, job.federation.model, local.optimizer, job.global_step)
    elif local.optimizer_state != "reset":
        state = past.state and past.state["optimizer"]
    if state:
        groups = optimizer.state_dict()["param_groups"]  # the federation file's numbers, not the past's
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _gradients(job: LocalJob, theta: Theta, model: PhotonModel, device: str) -> Gradients:
    local = job.federation.local
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


def _state(
    job: LocalJob, optimizer: torch.optim.Optimizer, loader: StreamingDataLoader, mix: str, samples: int
) -> dict[str, Any]:
    return {
        "optimizer": optimizer.state_dict()["state"],
        "optimizer_name": job.federation.local.optimizer.name,
        "stream": loader.state_dict(),
        "mix": mix,  # the stream's own state does not say which streams it belongs to
        "random": get_random_state(),
        "samples": samples,
    }


def _checkpoint(
    checkpoints: Checkpoints, past: Past, state: dict[str, Any], model: PhotonModel, trail: Path
) -> None:
    """Write a checkpoint; a disk that does not take it costs the checkpoint, not the round."""
    saved = {
        "state": {**state, "feedback": (past.state or {}).get("feedback")},
        "parameters": model.decoder.state_dict(),
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


def _close(dataset: StreamingDataset) -> None:
    """End the dataset's threads, then give its shared memory back."""
    iterator = getattr(dataset, "_iterator", None)
    if iterator is not None:
        iterator.exit()
    release(dataset)


@contextmanager
def _temporary_folder() -> Iterator[None]:
    """A TMPDIR of our own: streaming leaves lock files in it on every run."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    folder = tempfile.mkdtemp(prefix="photon-train-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(folder, ignore_errors=True)
