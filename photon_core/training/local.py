"""One site's local training for one round: theta in, an encoded update and a private state out.

Runs in a child process (see launch.py): Composer replaces signal handlers, a second fit() skips data, and a
dataset holds shared memory and threads for the life of its process.
"""

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from streaming import StreamingDataLoader, StreamingDataset

from photon_core.data.paths import state_dir
from photon_core.data.stream import release, stream_hash, train_dataset
from photon_core.training.composing import (
    RoundCallback,
    make_loader,
    make_loggers,
    make_optimizer,
    make_trainer,
)
from photon_core.training.device import choose_device
from photon_core.training.job import LocalJob, Trained
from photon_core.training.model import PhotonModel, load_decoder
from photon_core.training.random_state import get_random_state, set_random_state
from photon_core.training.state import SAMPLES, TRAINING, exclusive, find, find_result, publish, writing
from photon_core.training.weights import Theta, write_update

CODEC = "float32"


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


@dataclass
class _Past:
    """What the site's last aggregated round has left: `saved` is None where there is nothing to go on with."""

    saved: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return int(self.saved["samples"]) if self.saved else 0


def train(job: LocalJob, report: Callable[[dict[str, Any]], None]) -> Trained:
    """Train theta for the round's local steps and leave the update and the private state on the site's disk.

    Safe to repeat: a finished training of the same job is returned as it is. Nothing is left of an unfinished
    one.

    Args:
        job: what to train.
        report: called about once a second with step, steps, loss, tokens and tokens_per_second.

    Raises:
        UpdateRejected: the loss is not finite.
        CorruptFile: theta's files are not the federation's model.
        DataError: the site is not prepared.
    """
    torch.set_num_threads(job.threads)
    folder = state_dir(job.federation, job.site).absolute()
    with exclusive(folder):
        done = find_result(folder, job.round, job.attempt, job.key)
        if done is not None:
            return done
        with _temporary_folder(), writing(folder) as written:
            return publish(folder, written, _train(job, report, folder, written), job.key)


def _train(job: LocalJob, report: Callable[[dict[str, Any]], None], folder: Path, written: Path) -> Trained:
    federation, clock = job.federation, Clock()
    started = time.monotonic()
    with clock.phase("load"):
        device = choose_device(federation.local)
        theta = Theta(job.base_files, federation.model)
        model = PhotonModel(load_decoder(federation.model, theta.tensors(), device))
        optimizer = make_optimizer(model, federation)
        mix = stream_hash(federation, job.site)
        past = _load_past(job, folder, mix)
        if past.saved and past.saved["optimizer"] and federation.local.optimizer_state == "keep":
            groups = optimizer.state_dict()["param_groups"]  # the federation file's numbers, not the past's
            optimizer.load_state_dict({"state": past.saved["optimizer"], "param_groups": groups})
    with clock.phase("dataset"):
        dataset = train_dataset(federation, job.site, federation.seed)
    try:
        loader = make_loader(dataset, federation.local.batch_size, device)
        if past.saved and past.saved["stream"]:
            loader.load_state_dict(past.saved["stream"])
        with (written / SAMPLES).open("wb") as samples:
            callback = RoundCallback(federation, job.site, samples, report)
            _fit(job, model, loader, optimizer, callback, past, clock, device, folder)
        with clock.phase("save"):
            _save(written, federation.local.optimizer_state, optimizer, loader, mix, past.samples + callback.count)
    finally:
        with clock.phase("dataset"):
            _close(dataset)
    with clock.phase("encode"):
        parameters = dict(model.decoder.named_parameters())
        files, delta_norm = write_update(theta, parameters, written, CODEC)
    for note in past.notes:
        print(note)
    metrics = {
        "train_loss": callback.loss_sum / callback.tokens,
        "last_loss": callback.last_loss,
        "tokens_per_second": callback.tokens / clock.seconds["fit"],
        "seconds": time.monotonic() - started,
        "delta_norm": delta_norm,
        "samples": float(callback.count),
        **past.metrics,
    }
    return Trained(
        round=job.round,
        attempt=job.attempt,
        base_sha256=job.base_sha256,
        codec=CODEC,
        tokens=callback.tokens,
        steps=callback.steps,
        metrics=metrics,
        files=files,
        folder="",
        seconds=clock.seconds,
        notes=past.notes,
    )


def _fit(
    job: LocalJob,
    model: PhotonModel,
    loader: StreamingDataLoader,
    optimizer: torch.optim.Optimizer,
    callback: RoundCallback,
    past: _Past,
    clock: Clock,
    device: str,
    folder: Path,
) -> None:
    federation = job.federation
    with clock.phase("trainer"):
        trainer = make_trainer(
            federation,
            job.site,
            model,
            loader,
            optimizer,
            callback,
            device=device,
            global_step=job.global_step,
            loggers=make_loggers(federation.local.loggers, folder / "log"),
        )
        if past.saved:
            set_random_state(past.saved["random"])
    try:
        with clock.phase("fit"):
            trainer.fit(duration=f"{federation.local.steps}ba")
    finally:
        with clock.phase("trainer"):
            trainer.close()


def _load_past(job: LocalJob, folder: Path, mix: str) -> _Past:
    """The state to go on with; what is missing or no longer fits is said, never passed over."""
    if job.resume is None:
        return _Past(None)
    round, attempt = job.resume
    name = f"site '{job.site}': the private state of round {round}, attempt {attempt}"
    found = find(folder, round, attempt)
    try:
        saved = None if found is None else torch.load(found / TRAINING, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        note = f"{name} is missing or damaged: optimizer state and data stream start afresh"
        return _Past(None, [note], {"state_lost": 1.0})
    if saved["mix"] != mix:
        saved["stream"] = None
        note = f"{name} belongs to another mix of streams: the data stream starts afresh"
        return _Past(saved, [note], {"stream_restarted": 1.0})
    return _Past(saved)


def _save(
    written: Path, keep: str, optimizer: torch.optim.Optimizer, loader: StreamingDataLoader, mix: str, samples: int
) -> None:
    saved = {
        "optimizer": optimizer.state_dict()["state"] if keep == "keep" else None,
        "stream": loader.state_dict(),
        "mix": mix,  # the stream's own state does not say which streams it belongs to
        "random": get_random_state(),
        "samples": samples,
    }
    torch.save(saved, written / TRAINING)


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
