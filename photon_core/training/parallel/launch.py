"""One job over several devices: its ranks, started and watched by Composer's own launcher.

The ranks stay in the process group of the calling training process, so that a kill, a cancellation or a time limit
that ends that process ends them, too. The launcher ends all ranks when one fails. Child processes only.
"""

import json
import logging
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from photon_core.errors import Killed
from photon_core.hardware.device import check_devices
from photon_core.hardware.parallelism import Infra
from photon_core.jobs.scratch import remove_job
from photon_core.training.job import LocalJob
from photon_core.training.parallel.ranks import ANSWER, REPORTS, REQUEST
from photon_core.update.trained import Trained

OVER = b"\n"  # the end of the reports on the pipe


def train_ranks(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    micro_batch: int | str | None,
) -> Trained:
    """Train a job over several devices of this machine, like `run_local_steps`.

    Several machines are not supported: all devices of the job must belong to this machine.

    Args:
        job, report, folder, written, micro_batch: arguments of `run_local_steps`.
        infra: parallelism of the job; its ranks are started here.

    Raises:
        PhotonError: the first error of that kind that a rank has raised.
        ChildFailed: a rank raised another error, or was killed.
        FederationError: this machine has too few GPUs, or has none and FSDP needs them.
    """
    check_devices(job.view, infra.ranks)
    place = Path(tempfile.mkdtemp(prefix="ranks-"))
    job = replace(job, threads=max(1, job.threads // infra.ranks))
    request: dict[str, Any] = {"job": job, "folder": folder, "written": written, "micro_batch": micro_batch}
    request["sharded"] = infra.kind == "fsdp"
    try:
        (place / REQUEST).write_bytes(pickle.dumps(request))
        with _forwarding(place / REPORTS, report):
            code = launch(["-m", "photon_core.training.parallel.rank_main", str(place)], infra.ranks, job.threads)
        return _answer(job, infra, place, code)
    finally:
        remove_job(place)


def launch(program: list[str], ranks: int, threads: int) -> int:
    """Run Composer's launcher in this process until all ranks have ended. Returns its exit code.

    Args:
        program: script, or -m and a module, then the arguments.
        ranks: number of processes to start.
        threads: number of torch threads of each process.
    """
    from composer.cli import launcher

    paths = os.pathsep.join(entry for entry in sys.path if entry)
    before, level = (sys.argv, dict(os.environ)), logging.getLogger().level
    # ignore rendezvous variables inherited from an outer launcher (torchrun, Slurm)
    outer = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "BASE_RANK")
    for name in (*outer, "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update({"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)})
    sys.argv = ["composer", "-n", str(ranks), *program]
    try:
        return int(launcher.main())
    finally:
        sys.argv = before[0]
        os.environ.clear()
        os.environ.update(before[1])
        logging.getLogger().setLevel(level)


@contextmanager
def _forwarding(pipe: Path, report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `report` with the reports that the ranks write into the pipe, in a separate thread."""
    os.mkfifo(pipe, 0o600)
    descriptor = os.open(pipe, os.O_RDWR)  # a descriptor for reading only would reach EOF with the last writer

    def read() -> None:
        with open(descriptor, "rb", closefd=False) as lines:
            for line in lines:
                if line == OVER:
                    return
                report(json.loads(line))

    thread = threading.Thread(target=read, daemon=True, name="photon-ranks")
    thread.start()
    try:
        yield
    finally:
        os.write(descriptor, OVER)
        thread.join()
        os.close(descriptor)


def _answer(job: LocalJob, infra: Infra, place: Path, code: int) -> Trained:
    paths = sorted(place.glob(ANSWER.format("*")), key=lambda path: path.stat().st_mtime_ns)
    answers = {path.name: pickle.loads(path.read_bytes()) for path in paths}
    for kind, value in answers.values():
        if kind == "error":
            raise value
    kind, value = answers.get(ANSWER.format(0), ("", None))
    if code or kind != "result":
        missing = [rank for rank in range(infra.ranks) if ANSWER.format(rank) not in answers]
        raise Killed(f"site '{job.view.name}': rank {missing[0] if missing else 0} of {infra.ranks} was ended")
    assert isinstance(value, Trained)
    return value
