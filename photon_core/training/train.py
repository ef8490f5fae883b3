"""One site's local training for one round: theta in, an encoded update and a private state out.

It runs in a child process (see photon_core/jobs/launcher.py): Composer replaces signal handlers, a second fit()
skips data, and a dataset holds shared memory and threads until its process ends.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from photon_core.errors import UpdateRejected
from photon_core.evidence.events import Kind, Log, incidents_of
from photon_core.hardware.parallelism import Infra, check_infra
from photon_core.training.job import LocalJob
from photon_core.training.loop import run_local_steps
from photon_core.training.micro_batch import find_micro_batch, lower_if_out_of_memory
from photon_core.training.parallel.launch import train_ranks
from photon_core.training.parallel.nodes import train_by_nodes
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import exclusive, find_result, is_outdated, publish, settle, writing
from photon_core.update.trained import Trained


def train(job: LocalJob, report: Callable[[dict[str, Any]], None]) -> Trained:
    """Train theta for the round's local steps, and write the update and the private state to the site's disk.

    The call is idempotent. A finished training of the same job is returned unchanged. A training that was killed
    resumes from its last local checkpoint, to the same result bit for bit.

    Args:
        job: training job.
        report: callback about once a second with step, steps, loss, tokens and tokens_per_second; if the job
            announces shards, also with the path of every finished shard.

    Raises:
        UpdateRejected: the loss is not finite.
        CorruptFile: theta's files are not the federation's model.
        DataError: the site is not prepared.
        FederationError: the site's hardware does not allow the training that the file describes.
    """
    infra = check_infra(job.view)
    folder = job.view.state_dir.absolute()
    checkpoints, log = Checkpoints(folder, job), job.log()
    with exclusive(folder):
        trained = find_result(folder, job.round, job.attempt, job.key)
        if trained is None:
            if is_outdated(folder, job):
                log.append(Kind.TRAINING_REPEATED)
            with _temporary_folder(), writing(folder) as written:
                try:
                    with lower_if_out_of_memory(folder, report) as counted:
                        trained = _train(job, infra, counted, folder, written, checkpoints, log)
                except UpdateRejected:
                    checkpoints.drop()  # training that resumed from it would only diverge again
                    raise
                notes = incidents_of(log)
                for note in notes:
                    print(note)
                trained = replace(trained, notes=[*(note.fact for note in notes), *trained.notes])
                trained = publish(
                    folder, written, trained, job.key, job.resume, job.view.federation.run, job.behind
                )
        settle(Path(trained.folder))
        checkpoints.drop()
        return trained


def _train(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    checkpoints: Checkpoints,
    log: Log,
) -> Trained:
    """HasInfra: train in one process, in one job over the site's devices, or with each node independently."""
    if infra.kind == "federation":
        return train_by_nodes(job, infra, report, folder, written, checkpoints, train)
    # before this process uses a GPU
    micro_batch: int | str | None = "auto"  # Composer's own search, during training
    if infra.kind != "fsdp" or job.view.micro_batch != "auto":
        micro_batch = find_micro_batch(job.view, folder, infra.ranks, log)
    if infra.ranks > 1:
        return train_ranks(job, infra, report, folder, written, micro_batch)
    trained = run_local_steps(job, report, folder, written, checkpoints, micro_batch)
    assert trained is not None
    return trained


@contextmanager
def _temporary_folder() -> Iterator[None]:
    """A private TMPDIR for the block: streaming leaves lock files in TMPDIR on every run."""
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
