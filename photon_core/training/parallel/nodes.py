"""A federation inside the site (Photon, Algorithm 1): nodes with slow links train apart, and one update leaves.

Every node trains from the same theta on its part of the site's streams (see data/partition.py), for the site's
local steps and with the site's batch at each, in a folder of its own under <state_dir>/nodes/. There its
optimizer, its place in the stream, its checkpoints and its micro-batch are kept. Then parameters, metrics and,
where they are averaged over the sites, the optimizer's moments are averaged here, weighted by the tokens that
each node really trained; the mean is evaluated, clipped, noised and encoded once.

What is supported: all nodes are processes of the machine that this runs on, each with `hardware.devices` GPUs of
its own (or processors), in this process's group, so that whatever ends it ends them. What is not: nodes on several
machines. The place for them is `train_node`: it needs the job, theta's files and its own folder, and answers with
the folder of a `Trained`; a machine that runs it and shares a file system with this one could stand in for the
process that is started here. Until then such machines are written as sites of their own, and a site that declares
more GPUs than its machine has is refused. Child processes only.
"""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from photon_core.aggregation.means import token_weights, weighted_mean
from photon_core.data.manifest import require_manifest
from photon_core.data.partition import partition, site_numbers
from photon_core.data.stream import stream_hash
from photon_core.errors import ChildFailed, CorruptFile, DataError, FederationError, Killed, UpdateRejected
from photon_core.evidence.events import incidents_of
from photon_core.evidence.metrics import PLAIN, find
from photon_core.hardware.device import check_devices, choose_device
from photon_core.hardware.parallelism import Infra
from photon_core.jobs.child import PR_SET_PDEATHSIG, portable
from photon_core.model.decoder import load_decoder
from photon_core.model.key_layers import names_in
from photon_core.model.shapes import moment_shapes, parameter_shapes
from photon_core.training.evaluate import held_out_scores
from photon_core.training.exchange import Theta, write_tensors
from photon_core.training.finish import Clock, Outcome, as_trained, encode, kept_state
from photon_core.training.job import LocalJob
from photon_core.training.micro_batch import evaluation_batch
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import SAMPLES, TRAINING
from photon_core.training.state.resume import load_past
from photon_core.update.codecs.registry import get_codec
from photon_core.update.trained import Trained

Report = Callable[[dict[str, Any]], None]
Train = Callable[[LocalJob, Report], Trained]


def train_nodes(job: LocalJob, infra: Infra, report: Report, train: Train) -> list[Trained]:
    """Train every node of the site, side by side.

    Args:
        job: of the site.
        infra: its nodes.
        report: called with all nodes' progress together, once each has begun.
        train: trains one node, as it trains a site.

    Returns:
        what the nodes trained, in their order.

    Raises:
        PhotonError: as a node raised it, and by its name; the others are ended, and go on from their checkpoints
            when the job is done again.
        ChildFailed: a node raised something else, or was killed.
    """
    check_devices(job.view, infra.nodes * infra.ranks)
    partition(job.view, infra.nodes)
    nodes = [_Node(job, infra, number, train) for number in range(1, infra.nodes + 1)]
    try:
        return _collect(job, nodes, report)
    finally:
        for node in nodes:
            node.end()


def node_job(job: LocalJob, infra: Infra, number: int) -> LocalJob:
    """The site's job as one node has it: its own folder, its share of the threads, and an exact update."""
    return replace(job, view=job.view.node(number), threads=max(1, job.threads // infra.nodes), announce=False)


def train_node(job: LocalJob, gpus: list[int], report: Report, train: Train) -> Trained:
    """One node's training, in a process that has not touched a GPU.

    Args:
        job: the node's own (see `node_job`).
        gpus: numbers of those that are the node's; empty without GPUs.
        report, train: as for `train_nodes`.
    """
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(number) for number in range(gpus[-1] + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[number] for number in gpus)
    return train(job, report)


class _Node:
    """One node's process, and what has come of it."""

    def __init__(self, job: LocalJob, infra: Infra, number: int, train: Train) -> None:
        self.name = f"node {number} of site '{job.view.name}'"
        self.progress: dict[str, Any] | None = None
        self.trained: Trained | None = None
        context = multiprocessing.get_context("fork")
        self.answers, there = context.Pipe(duplex=False)
        first = (number - 1) * infra.ranks
        on_gpus = choose_device(job.view.local) == "cuda"
        gpus = list(range(first, first + infra.ranks)) if on_gpus else []
        arguments = (there, node_job(job, infra, number), gpus, train, os.getpid())
        self.process: BaseProcess = context.Process(target=_run, args=arguments)
        self.process.start()
        there.close()

    def receive(self) -> None:
        """Take in one message.

        Raises:
            PhotonError: the node has failed.
        """
        try:
            kind, value = self.answers.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise (Killed if code < 0 else ChildFailed)(f"{self.name}: {killed}") from None
        if kind == "report":
            self.progress = value
        elif kind == "result":
            self.trained = value
        elif isinstance(value, UpdateRejected):
            raise UpdateRejected(value.site, f"{self.name}: {value.reason}")
        else:
            kind = type(value) if type(value) in (CorruptFile, DataError, FederationError, Killed) else ChildFailed
            raise kind(f"{self.name}: {value}")

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.answers.close()


def _run(channel: Connection, job: LocalJob, gpus: list[int], train: Train, parent: int) -> None:
    code = 1
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            channel.send(("result", train_node(job, gpus, lambda values: channel.send(("report", values)), train)))
            code = 0
    except BaseException as error:
        traceback.print_exc()
        channel.send(("error", portable(error)))
    finally:
        channel.close()
        os._exit(code)


def _collect(job: LocalJob, nodes: list[_Node], report: Report) -> list[Trained]:
    reported = 0
    while waiting := [node for node in nodes if node.trained is None]:
        ready = wait([node.answers for node in waiting])
        for node in waiting:
            if node.answers in ready:
                node.receive()
        found = [node.progress for node in nodes if node.progress is not None]
        if len(found) == len(nodes) and (step := min(values["step"] for values in found)) > reported:
            reported = step
            report(
                {
                    "step": step,
                    "steps": job.view.steps,
                    "loss": sum(values["loss"] for values in found) / len(found),
                    "tokens": sum(values["tokens"] for values in found),
                    "tokens_per_second": sum(values["tokens_per_second"] for values in found),
                }
            )
    return [node.trained for node in nodes if node.trained is not None]


class Average:
    """The nodes' work as one site's.

    Args:
        job: of the site.
        trained: what its nodes trained, in their order.
        theta: what they started from.
    """

    def __init__(self, job: LocalJob, trained: list[Trained], theta: Theta) -> None:
        self.job, self.trained, self.theta = job, trained, theta
        self.tokens = sum(node.tokens for node in trained)
        self.steps = max(node.steps for node in trained)
        names = {f"{number:06d}": node.tokens for number, node in enumerate(trained)}
        self.weights = list(token_weights(names).values())

    def parameters(self) -> dict[str, torch.Tensor]:
        """The weighted mean of the nodes' parameters, on the CPU."""
        decode, model = get_codec("float32").decode, self.job.view.federation.model
        shapes, key = parameter_shapes(model), names_in(self.job.key_layers)
        coded, whole = ({n: s for n, s in shapes.items() if (n in key) is of_key} for of_key in (False, True))
        updates = [Theta(_paths(node, node.files), model, coded, dtype="I32") for node in self.trained]
        layers = [Theta(_paths(node, node.key_layers), model, whole) for node in self.trained]
        mean = {}
        for name in self.theta.names:
            if name in key:
                found = [one.array(name) for one in layers]
            else:
                start = self.theta.array(name)
                found = [np.asarray(decode(start, update.array(name)), np.float32) for update in updates]
            mean[name] = self._mean(found)
        return mean

    def moments(self) -> dict[str, torch.Tensor]:
        """The weighted mean of the optimizer's moments, where they are averaged; those of key layers are not."""
        local, stay = self.job.view.local, names_in(self.job.key_layers)
        shapes = moment_shapes(self.job.view.federation.model, local.optimizer.name, stay)
        found = [
            Theta(_paths(node, node.moments), self.job.view.federation.model, shapes) for node in self.trained
        ]
        return {name: self._mean([node.array(name) for node in found]) for name in found[0].names}

    def samples(self) -> bytes:
        """samples.u32 of the site: the nodes' samples, node after node, by the site's numbers."""
        view, nodes = self.job.view, len(self.trained)
        trails = [np.fromfile(Path(node.folder, "samples.u32"), "<u4") for node in self.trained]
        parts = [site_numbers(view, nodes, i, trail) for i, trail in enumerate(trails, 1)]
        return b"".join(part.tobytes() for part in parts)

    def metrics(self) -> dict[str, float]:
        """As the register combines them over nodes; a value that a node does not report is 0."""
        metrics = [node.metrics for node in self.trained]
        combined = {"nodes": float(len(metrics))}
        for name in sorted(set().union(*metrics)):
            values = [found.get(name, 0.0) for found in metrics]
            metric = find(name, "training")
            how = metric.nodes if metric else ""
            if how == "samples":
                samples = [found.get(f"samples/{name.partition('/')[2]}", 0.0) for found in metrics]
                combined[name] = float(np.dot(values, samples)) / sum(samples)
            elif how == "tokens":
                combined[name] = float(np.dot(values, self.weights))
            elif how in PLAIN:
                combined[name] = PLAIN[how](values)
        return combined

    def notes(self) -> list[str]:
        return [f"node {number}: {note}" for number, node in enumerate(self.trained, 1) for note in node.notes]

    def _mean(self, found: list[np.ndarray[Any, np.dtype[np.float32]]]) -> torch.Tensor:
        rows = np.stack([array.reshape(-1) for array in found])
        mean = weighted_mean(rows, self.weights, np.empty(rows.shape[1], np.float32), np.empty_like(rows))
        return torch.from_numpy(mean.reshape(found[0].shape))


def _paths(node: Trained, files: list[Any]) -> list[str]:
    return [str(Path(node.folder, entry.path)) for entry in files]


def train_apart(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    train: Train,
) -> Trained:
    """As `run_local_steps`, of a site that is a federation of its nodes.

    Args:
        job, report, folder, written, checkpoints: as there.
        infra: the nodes.
        train: trains one node, as it trains a site.
    """
    view, clock, started = job.view, Clock(), time.monotonic()
    torch.set_num_threads(job.threads)
    with clock.phase("nodes"):
        trained = train_nodes(job, infra, report, train)
    theta, mix = Theta(job.base_files, view.federation.model), stream_hash(view)
    past = load_past(job, folder, mix, checkpoints, infra.nodes)
    with clock.phase("average"):
        average = Average(job, trained, theta)
        parameters = average.parameters()
    scores: dict[str, float] = {}
    if view.local.evaluate:
        with clock.phase("evaluate"), suppress(DataError):  # nothing is held out: the round's evaluation says it
            size = evaluation_batch(view)
            device = choose_device(view.local)  # the nodes have ended: this process may touch a GPU now
            decoder = load_decoder(view.federation.model, parameters, device)
            scores = held_out_scores(decoder, view, device, size)
    with clock.phase("encode"):
        update = encode(job, report, theta, parameters, past, folder, written)
    with clock.phase("save"):
        moments = []
        if view.local.optimizer_state == "average":
            size, dtype = view.federation.aggregation.shard_bytes, view.update.moments_dtype
            moments = write_tensors(average.moments(), written, size, dtype)
        samples = average.samples()
        (written / SAMPLES).write_bytes(samples)
        # each node keeps its own optimizer, and its place in its stream
        state = kept_state(job, None, None, mix, past.samples + len(samples) // 4)
        state |= {"nodes": infra.nodes, "feedback": update.feedback}
        with (written / TRAINING).open("wb") as file:
            torch.save(state, file)
    metrics = {**average.metrics(), "seconds": time.monotonic() - started}
    data_tokens = require_manifest(view).train_tokens
    outcome = Outcome(
        tokens=average.tokens,
        steps=average.steps,
        metrics=metrics,
        scores=scores,
        data_tokens=data_tokens,
        update=update,
        moments=moments,
        notes=[*incidents_of(past.log), *average.notes()],
    )
    return as_trained(job, past, outcome, clock.seconds)
