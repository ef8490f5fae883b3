"""A federation inside the site (Photon, Algorithm 1): nodes with slow links train independently, for one update.

Every node trains from the same theta on its part of the site's streams (see data/partition.py), with the site's
local steps and the site's batch. Each has its own folder under <state_dir>/nodes/, which keeps its optimizer, its
position in the data stream, its checkpoints and its micro-batch. Then this process averages parameters and
metrics, and also the optimizer's moments if the sites average them. The weights are the tokens that each node has
trained. The mean is evaluated, clipped, noised and encoded once.

Supported: all nodes are processes of this machine, each with its own `hardware.devices` GPUs (or processors), and
in this process's group, so that they end when this process ends.

Not supported: nodes on several machines. Such machines are written as separate sites, and a site that declares
more GPUs than its machine has is refused. The place to add them is `train_node`: it needs the job, theta's files
and its own folder, and returns the folder of a `Trained`. A machine that runs it and shares a file system with
this one could replace the process that is started here. Child processes only.
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
from photon_core.training.state.resume import load_resume_state
from photon_core.update.codecs.registry import get_codec
from photon_core.update.trained import Trained

Report = Callable[[dict[str, Any]], None]
Train = Callable[[LocalJob, Report], Trained]


def train_nodes(job: LocalJob, infra: Infra, report: Report, train: Train) -> list[Trained]:
    """Train every node of the site, in parallel.

    Args:
        job: job of the site.
        infra: nodes of the site.
        report: callback with the progress of all nodes together, once every node has started.
        train: function that trains one node, like a site.

    Returns:
        the results of the nodes, in their order.

    Raises:
        PhotonError: an error of that kind that a node has raised, with the node's name. The other nodes are ended,
            and resume from their checkpoints when the job is repeated.
        ChildFailed: a node raised another error, or was killed.
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
    """The site's job for one node: with its own folder, its share of the threads, and an exact update."""
    return replace(job, view=job.view.node(number), threads=max(1, job.threads // infra.nodes), announce=False)


def train_node(job: LocalJob, gpus: list[int], report: Report, train: Train) -> Trained:
    """One node's training, in a process that has not used a GPU.

    Args:
        job: job of the node (see `node_job`).
        gpus: numbers of the node's GPUs; empty without GPUs.
        report, train: arguments of `train_nodes`.
    """
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(number) for number in range(gpus[-1] + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[number] for number in gpus)
    return train(job, report)


class _Node:
    """One node's process, its progress and its result."""

    def __init__(self, job: LocalJob, infra: Infra, number: int, train: Train) -> None:
        self.name = f"node {number} of site '{job.view.name}'"
        self.progress: dict[str, Any] | None = None
        self.trained: Trained | None = None
        context = multiprocessing.get_context("fork")
        self.answers, sender = context.Pipe(duplex=False)
        first = (number - 1) * infra.ranks
        on_gpus = choose_device(job.view.local) == "cuda"
        gpus = list(range(first, first + infra.ranks)) if on_gpus else []
        arguments = (sender, node_job(job, infra, number), gpus, train, os.getpid())
        self.process: BaseProcess = context.Process(target=_run, args=arguments)
        self.process.start()
        sender.close()

    def receive(self) -> None:
        """Receive one message.

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
        progress = [node.progress for node in nodes if node.progress is not None]
        if len(progress) == len(nodes) and (step := min(values["step"] for values in progress)) > reported:
            reported = step
            report(
                {
                    "step": step,
                    "steps": job.view.steps,
                    "loss": sum(values["loss"] for values in progress) / len(progress),
                    "tokens": sum(values["tokens"] for values in progress),
                    "tokens_per_second": sum(values["tokens_per_second"] for values in progress),
                }
            )
    return [node.trained for node in nodes if node.trained is not None]


class Average:
    """The nodes' work, combined as one site's.

    Args:
        job: job of the site.
        trained: results of the nodes, in their order.
        theta: parameters before training.
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
                of_nodes = [one.array(name) for one in layers]
            else:
                start = self.theta.array(name)
                of_nodes = [np.asarray(decode(start, update.array(name)), np.float32) for update in updates]
            mean[name] = self._mean(of_nodes)
        return mean

    def moments(self) -> dict[str, torch.Tensor]:
        """The weighted mean of the optimizer's moments; key layers have none."""
        local, stay = self.job.view.local, names_in(self.job.key_layers)
        shapes = moment_shapes(self.job.view.federation.model, local.optimizer.name, stay)
        of_nodes = [
            Theta(_paths(node, node.moments), self.job.view.federation.model, shapes) for node in self.trained
        ]
        return {name: self._mean([node.array(name) for node in of_nodes]) for name in of_nodes[0].names}

    def samples(self) -> bytes:
        """samples.u32 of the site: the nodes' samples, node after node, with the site's numbers."""
        view, nodes = self.job.view, len(self.trained)
        trails = [np.fromfile(Path(node.folder, "samples.u32"), "<u4") for node in self.trained]
        parts = [site_numbers(view, nodes, i, trail) for i, trail in enumerate(trails, 1)]
        return b"".join(part.tobytes() for part in parts)

    def metrics(self) -> dict[str, float]:
        """The nodes' metrics, combined as the register defines. A value that a node does not report is 0."""
        metrics = [node.metrics for node in self.trained]
        combined = {"nodes": float(len(metrics))}
        for name in sorted(set().union(*metrics)):
            values = [of_node.get(name, 0.0) for of_node in metrics]
            metric = find(name, "training")
            how = metric.nodes if metric else ""
            if how == "samples":
                samples = [of_node.get(f"samples/{name.partition('/')[2]}", 0.0) for of_node in metrics]
                combined[name] = float(np.dot(values, samples)) / sum(samples)
            elif how == "tokens":
                combined[name] = float(np.dot(values, self.weights))
            elif how in PLAIN:
                combined[name] = PLAIN[how](values)
        return combined

    def _mean(self, of_nodes: list[np.ndarray[Any, np.dtype[np.float32]]]) -> torch.Tensor:
        rows = np.stack([array.reshape(-1) for array in of_nodes])
        mean = weighted_mean(rows, self.weights, np.empty(rows.shape[1], np.float32), np.empty_like(rows))
        return torch.from_numpy(mean.reshape(of_nodes[0].shape))


def _paths(node: Trained, files: list[Any]) -> list[str]:
    return [str(Path(node.folder, entry.path)) for entry in files]


def train_by_nodes(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    train: Train,
) -> Trained:
    """Train a site that is a federation of its nodes, like `run_local_steps`.

    Args:
        job, report, folder, written, checkpoints: arguments of `run_local_steps`.
        infra: nodes of the site.
        train: function that trains one node, like a site.
    """
    view, clock, started = job.view, Clock(), time.monotonic()
    torch.set_num_threads(job.threads)
    with clock.phase("nodes"):
        trained = train_nodes(job, infra, report, train)
    theta, mix = Theta(job.base_files, view.federation.model), stream_hash(view)
    resumed = load_resume_state(job, folder, mix, checkpoints, infra.nodes)
    for number, note in [(number, note) for number, node in enumerate(trained, 1) for note in node.notes]:
        resumed.log.add(note, node=number)
    with clock.phase("average"):
        average = Average(job, trained, theta)
        parameters = average.parameters()
    scores: dict[str, float] = {}
    if view.local.evaluate:
        # DataError: nothing is held out, which the round's own evaluation reports
        with clock.phase("evaluate"), suppress(DataError):
            size = evaluation_batch(view)
            device = choose_device(view.local)  # the nodes have ended: this process may use a GPU now
            decoder = load_decoder(view.federation.model, parameters, device)
            scores = held_out_scores(decoder, view, device, size)
    with clock.phase("encode"):
        update = encode(job, report, theta, parameters, resumed, folder, written)
    with clock.phase("save"):
        moments = []
        if view.local.optimizer_state == "average":
            size, dtype = view.federation.aggregation.shard_bytes, view.update.moments_dtype
            moments = write_tensors(average.moments(), written, size, dtype)
        samples = average.samples()
        (written / SAMPLES).write_bytes(samples)
        # each node keeps its own optimizer, and its position in its data stream
        state = kept_state(job, None, None, mix, resumed.samples + len(samples) // 4)
        state |= {"nodes": infra.nodes, "feedback": update.feedback}
        with (written / TRAINING).open("wb") as file:
            torch.save(state, file)
    outcome = Outcome(
        tokens=average.tokens,
        steps=average.steps,
        metrics={**average.metrics(), "seconds": time.monotonic() - started},
        scores=scores,
        data_tokens=require_manifest(view).train_tokens,
        update=update,
        moments=moments,
    )
    return as_trained(job, resumed, outcome, clock.seconds)
