"""A site whose nodes have trained apart (see nodes.py): their mean becomes its update and its private state.

Child processes only.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from photon_core.data.manifest import require_manifest
from photon_core.data.stream import stream_hash
from photon_core.errors import DataError
from photon_core.hardware.device import choose_device
from photon_core.hardware.parallelism import Infra
from photon_core.model.decoder import load_decoder
from photon_core.training.evaluate import held_out_scores
from photon_core.training.exchange import Theta
from photon_core.training.job import LocalJob, Trained
from photon_core.training.loop import Clock, as_trained, encode, kept_state
from photon_core.training.micro_batch import evaluation_batch
from photon_core.training.moments import write_tensors
from photon_core.training.parallel.nodes import Average, Train, train_nodes
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import SAMPLES, TRAINING
from photon_core.training.state.resume import load_past


def train_apart(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    train: Train,
) -> Trained:
    """As `working.work`, of a site that is a federation of its nodes.

    Args:
        job, report, folder, written, checkpoints: as there.
        infra: the nodes.
        train: trains one node, as it trains a site.
    """
    federation, clock, started = job.federation, Clock(), time.monotonic()
    torch.set_num_threads(job.threads)
    with clock.phase("nodes"):
        trained = train_nodes(job, infra, report, train)
    theta, mix = Theta(job.base_files, federation.model), stream_hash(federation, job.site)
    past = load_past(job, folder, mix, checkpoints, infra.nodes)
    with clock.phase("average"):
        average = Average(job, trained, theta)
        parameters = average.parameters()
    scores: dict[str, float] = {}
    if federation.local.evaluate:
        with clock.phase("evaluate"), suppress(DataError):  # nothing is held out: the round's evaluation says it
            size = evaluation_batch(federation, job.site)
            device = choose_device(federation.local)  # the nodes have ended: this process may touch a GPU now
            decoder = load_decoder(federation.model, parameters, device)
            scores = held_out_scores(decoder, federation, job.site, device, size)
    with clock.phase("encode"):
        update = encode(job, report, theta, parameters, past, folder, written)
    with clock.phase("save"):
        moments = []
        if federation.local.optimizer_state == "average":
            size, dtype = federation.aggregation.shard_bytes, federation.update.moments_dtype
            moments = write_tensors(average.moments(), written, size, dtype)
        samples = average.samples()
        (written / SAMPLES).write_bytes(samples)
        # each node keeps its own optimizer, and its place in its stream
        state = kept_state(job, None, None, mix, past.samples + len(samples) // 4)
        state |= {"nodes": infra.nodes, "feedback": update.feedback}
        with (written / TRAINING).open("wb") as file:
            torch.save(state, file)
    metrics = {**average.metrics(), "seconds": time.monotonic() - started}
    data_tokens = require_manifest(federation, job.site).train_tokens
    done, notes = (average.tokens, average.steps), [*past.notes, *average.notes()]
    return as_trained(job, *done, metrics, scores, data_tokens, past, update, moments, clock, notes)
