"""One training job: H local steps from theta, then the update and the private state.

Several processes may share a job, a device each (see ranks.py). All of them make the steps, and the first rank
does the rest. Child processes only.
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
from photon_core.evidence.events import Fact, Kind, incidents_of
from photon_core.evidence.loggers import make_loggers
from photon_core.hardware.device import choose_device
from photon_core.model.decoder import PhotonModel, load_decoder
from photon_core.model.key_layers import names_in
from photon_core.model.meters import ActivationNorm, StreamLosses
from photon_core.training.callback import Meters, RoundCallback
from photon_core.training.compiled import choose_score
from photon_core.training.evaluate import held_out_scores
from photon_core.training.exchange import Theta, no_moments, read_moments, write_moments
from photon_core.training.finish import Clock, Outcome, as_trained, encode, kept_state
from photon_core.training.job import LocalJob
from photon_core.training.metrics import round_metrics
from photon_core.training.micro_batch import at_once
from photon_core.training.optimizer.build import make_optimizer, parameter_names
from photon_core.training.optimizer.gradients import Gradients
from photon_core.training.parallel.ranks import Ranks
from photon_core.training.parallel.sharding import State, TrainState
from photon_core.training.state.checkpoint import Checkpoints, set_random_state
from photon_core.training.state.folder import SAMPLES, TRAINING
from photon_core.training.state.resume import Resumed, load_resume_state
from photon_core.training.trainer import make_loader, make_trainer
from photon_core.update.trained import Trained
from schemas.manifests import FileEntry

Report = Callable[[dict[str, Any]], None]


def run_local_steps(
    job: LocalJob,
    report: Report,
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    micro_batch: int | str | None = None,
    ranks: Ranks | None = None,
) -> Trained | None:
    """Make the round's local steps, then write the update and the private state, not yet under their final names.

    Args:
        job: training job.
        report: callback as for `train.train`; called on the first rank only.
        folder: private folder of the site.
        written: output folder for the update and the state.
        checkpoints: checkpoints of the job.
        micro_batch: sequences per forward pass on one device; None for all.
        ranks: processes that share the work; None for this process alone.

    Returns:
        the result of the training; None on every rank but the first.

    Raises:
        UpdateRejected: the loss, or another number of the training, is not finite.
        CorruptFile: theta's files are not the federation's model.
        DataError: the site is not prepared.
    """
    torch.set_num_threads(job.threads)
    started = time.monotonic()
    ranks = ranks or Ranks(device=choose_device(job.view.local))
    run = _LocalSteps(job, report, written, micro_batch)
    run.load(folder, checkpoints, ranks)
    try:
        run.fit(folder / "log", checkpoints)
        if not _dismiss_others(run.dataset, ranks):
            return None
        run.finish(folder)
    finally:
        if ranks.first:
            with run.clock.phase("dataset"):
                _close(run.dataset)
    return as_trained(job, run.resumed, run.outcome(started), run.clock.seconds)


class _LocalSteps:
    """A job's local steps in this process: `load`, then `fit`, then, on the first rank, `finish`.

    Args:
        job, report, written, micro_batch: arguments of `run_local_steps`.
    """

    def __init__(self, job: LocalJob, report: Report, written: Path, micro_batch: int | str | None) -> None:
        self.job, self.report, self.written, self.micro_batch = job, report, written, micro_batch
        self.clock = Clock()
        self.scores: dict[str, float] = {}
        self.moments: list[FileEntry] = []

    def load(self, folder: Path, checkpoints: Checkpoints, ranks: Ranks) -> None:
        """Load the model, its optimizer, the state to resume from, and the data stream."""
        job, view = self.job, self.job.view
        self.data_tokens = require_manifest(view).train_tokens
        with self.clock.phase("load"):
            self.theta = Theta(job.base_files, view.federation.model)
            self.mix = stream_hash(view)
            self.resumed = load_resume_state(job, folder, self.mix, checkpoints)
            # with FSDP the Trainer moves the model to the device block by block
            place, model = "cpu" if ranks.sharded else ranks.device, view.federation.model
            self.decoder = load_decoder(model, self.resumed.parameters or self.theta.tensors(), place)
            self.activations = ActivationNorm()
            score = choose_score(view, ranks.device, ranks, self.resumed.log)
            module = PhotonModel(self.decoder, len(view.streams) > 1, self.activations, score)
            optimizer = make_optimizer(self.decoder, view.local.optimizer)
            names = parameter_names(self.decoder, view.local.optimizer)
            self.state = TrainState(module, optimizer, names, ranks)
            self.progress, self.tokens_before = self.resumed.progress, self.resumed.progress.tokens
        with self.clock.phase("dataset"):
            self.dataset = train_dataset(view, view.federation.seed, ranks.size, ranks.wait)

    def fit(self, log: Path, checkpoints: Checkpoints) -> None:
        """Make the steps, on every rank."""
        job, view, train_state, resumed = self.job, self.job.view, self.state, self.resumed
        ranks = train_state.ranks
        loader = make_loader(self.dataset, view.local.batch_size, ranks.device, ranks)
        if resumed.state and resumed.state["stream"]:
            loader.load_state_dict(resumed.state["stream"])
        with (self.written / SAMPLES if ranks.first else Path(os.devnull)).open("wb") as samples:
            samples.write(resumed.trail)

            def checkpoint() -> None:
                with self.clock.phase("checkpoint"):
                    parameters, moments = train_state.parameters(), train_state.moments()
                    if ranks.first:
                        samples.flush()
                        state = kept_state(job, moments, loader.state_dict(), self.mix, resumed.samples)
                        _checkpoint(checkpoints, resumed, state, parameters, self.written / SAMPLES)

            meters = self._meters()
            callback = RoundCallback(job, samples, self.report, checkpoint, self.progress, meters, ranks)
            with self.clock.phase("trainer"):
                trainer = make_trainer(
                    view,
                    train_state,
                    loader,
                    [meters.gradients, callback],
                    global_step=job.global_step + self.progress.steps,
                    micro_batch=self.micro_batch,
                    loggers=make_loggers(view.local.loggers, log, first=ranks.first),
                )
                _load_optimizer(job, train_state, resumed)
                if resumed.state:
                    set_random_state(resumed.state["random"])
            _fit(trainer, view.steps - self.progress.steps, self.clock)
        self.parameters, self.kept = train_state.parameters(), train_state.moments()
        self.stream = loader.state_dict()

    def _meters(self) -> Meters:
        job, model, streams = self.job, self.state.model, self.job.view.streams
        losses = None
        if len(streams) > 1:
            counts = [int(count) for count in self.dataset.samples_per_stream]
            losses = StreamLosses([stream.name for stream in streams], counts, self.progress.streams)
        gradients = _gradients(job, self.theta, model, self.state.ranks.device)
        return Meters(model, gradients, self.activations, losses)

    def finish(self, folder: Path) -> None:
        """Evaluate the trained model, and write the update and the private state, on the first rank."""
        job, view, ranks = self.job, self.job.view, self.state.ranks
        if view.local.evaluate and not ranks.sharded:  # the model may not fit on the first rank alone
            # DataError: nothing is held out, which the round's own evaluation reports
            with self.clock.phase("evaluate"), suppress(DataError):
                size = at_once(view.local, self.micro_batch, ranks.size)  # the optimizer is still on the device
                self.scores = held_out_scores(self.decoder, view, ranks.device, size)
        with self.clock.phase("encode"):
            self.update = encode(job, self.report, self.theta, self.parameters, self.resumed, folder, self.written)
        with self.clock.phase("save"):
            samples = self.resumed.samples + self.progress.count
            state = kept_state(job, self.kept, self.stream, self.mix, samples)
            if view.local.optimizer_state == "average":
                size, dtype = view.federation.aggregation.shard_bytes, view.update.moments_dtype
                names, stay = self.state.names, names_in(job.key_layers)
                sent = {number: own for number, own in state["optimizer"].items() if names[number] not in stay}
                self.moments = write_moments(sent, names, self.written, size, dtype)
            if view.local.optimizer_state == "reset":
                state["optimizer"] = None
            with (self.written / TRAINING).open("wb") as file:  # given a path, torch hides why a write has failed
                torch.save({**state, "feedback": self.update.feedback}, file)

    def outcome(self, started: float) -> Outcome:
        """The outcome.

        Args:
            started: start of the training, by the monotonic clock.
        """
        progress, ranks = self.progress, self.state.ranks
        metrics = {
            **round_metrics(self.job, progress),
            "tokens_per_second": (progress.tokens - self.tokens_before) / self.clock.seconds["fit"],
            "seconds": time.monotonic() - started,
            **({"micro_batch": float(self.micro_batch)} if isinstance(self.micro_batch, int) else {}),
            **({"devices": float(ranks.size)} if ranks.size > 1 else {}),
        }
        return Outcome(
            tokens=progress.tokens,
            steps=progress.steps,
            metrics=metrics,
            scores=self.scores,
            data_tokens=self.data_tokens,
            update=self.update,
            moments=self.moments,
        )


def _load_optimizer(job: LocalJob, train_state: TrainState, resumed: Resumed) -> None:
    """Load the moments of this round's checkpoint, else the sites' average, else the site's own, if kept.

    Moments of key layers are always the site's own, zeros at first: nobody else has trained these.
    """
    state: State | None = resumed.state["optimizer"] if resumed.state else None
    if resumed.parameters is None and job.moment_files:
        state = _averaged(job, train_state.names, state)
    elif resumed.parameters is None and job.view.local.optimizer_state == "reset":
        state = None
    if state:
        train_state.load(state)


def _averaged(job: LocalJob, names: list[str], own: State | None) -> State:
    """The averaged moments, and the site's own of key layers."""
    model, optimizer, stay = job.view.federation.model, job.view.local.optimizer, names_in(job.key_layers)
    state = read_moments(job.moment_files, names, model, optimizer, job.global_step, stay)
    if stay:
        kept = no_moments(names, model, optimizer) | (own or {})
        state |= {number: kept[number] for number, name in enumerate(names) if name in stay}
    return state


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
    checkpoints: Checkpoints,
    resumed: Resumed,
    state: dict[str, Any],
    parameters: dict[str, torch.Tensor],
    trail: Path,
) -> None:
    """Write a checkpoint. If the disk refuses it, the checkpoint is lost, but the round is not."""
    saved = {
        "state": {**state, "feedback": (resumed.state or {}).get("feedback")},
        "parameters": parameters,
        "progress": asdict(resumed.progress),
        "trail": torch.from_numpy(np.fromfile(trail, np.uint8)),
        "notes": [event.fact.record() for event in incidents_of(resumed.log)],
        "metrics": resumed.metrics,
    }
    try:
        checkpoints.write(saved)
    except (OSError, RuntimeError) as error:
        fact = Fact(Kind.CHECKPOINT_FAILED, {"error": str(error)})
        if fact not in [event.fact for event in incidents_of(resumed.log)]:
            resumed.log.add(fact)


def _dismiss_others(dataset: StreamingDataset, ranks: Ranks) -> bool:
    """Whether this rank continues after the steps. Only the first rank does; the others release their part of the
    dataset.

    A rank must not release a name of shared memory before the first rank has read the stream's state. It must not
    release one after the first rank has released them all, because the name may then belong to another dataset.
    """
    ranks.wait()
    if not ranks.first:
        _close(dataset, whole=False)
    ranks.wait()
    return ranks.first


def _close(dataset: StreamingDataset, whole: bool = True) -> None:
    """End the dataset's threads, then release its shared memory."""
    iterator = getattr(dataset, "_iterator", None)
    if iterator is not None:
        iterator.exit()
    release(dataset, whole)
