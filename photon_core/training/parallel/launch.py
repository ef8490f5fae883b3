"""One job over several devices: its ranks, started and watched by Composer's own launcher.

They stay in the process group of the training process that calls this, so that whatever ends that one (a kill, a
cancellation, a time limit) ends them. The launcher ends all when one fails. Child processes only.
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

OVER = b"\n"  # on the pipe: there will be no more reports


def train_ranks(
    job: LocalJob,
    infra: Infra,
    report: Callable[[dict[str, Any]], None],
    folder: Path,
    written: Path,
    micro_batch: int | str | None,
) -> Trained:
    """Train a job as `run_local_steps` does, over several devices of this machine.

    Several machines are not supported: nodes with fast links must all be devices of the one that trains.

    Args:
        job, report, folder, written, micro_batch: as for `run_local_steps`.
        infra: how; its ranks are started here.

    Raises:
        PhotonError: as a rank raised it, the first that did.
        ChildFailed: a rank raised something else, or was killed.
        FederationError: this machine does not have that many GPUs, or none, and FSDP needs them.
    """
    check_devices(job.view, infra.ranks)
    place = Path(tempfile.mkdtemp(prefix="ranks-"))
    job = replace(job, threads=max(1, job.threads // infra.ranks))
    request: dict[str, Any] = {"job": job, "folder": folder, "written": written, "micro_batch": micro_batch}
    request["sharded"] = infra.kind == "fsdp"
    try:
        (place / REQUEST).write_bytes(pickle.dumps(request))
        with _passing_on(place / REPORTS, report):
            code = launch(["-m", "photon_core.training.parallel.rank_main", str(place)], infra.ranks, job.threads)
        return _answer(job, infra, place, code)
    finally:
        remove_job(place)


def launch(program: list[str], ranks: int, threads: int) -> int:
    """Composer's launcher, in this process, until all ranks have ended; returns its exit code.

    Args:
        program: a script or -m and a module, and its arguments.
        ranks: processes to start.
        threads: torch threads of each.
    """
    from composer.cli import launcher

    paths = os.pathsep.join(entry for entry in sys.path if entry)
    before, level = (sys.argv, dict(os.environ)), logging.getLogger().level
    # a job over several machines, or under a launcher, is none of ours: its variables must not be taken for it
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
def _passing_on(pipe: Path, report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `report` with what the ranks write into the pipe, in a thread of its own."""
    os.mkfifo(pipe, 0o600)
    descriptor = os.open(pipe, os.O_RDWR)  # for reading alone, it would end with the last writer

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
    answers = sorted(place.glob(ANSWER.format("*")), key=lambda path: path.stat().st_mtime_ns)
    found = {path.name: pickle.loads(path.read_bytes()) for path in answers}
    for kind, value in found.values():
        if kind == "error":
            raise value
    kind, value = found.get(ANSWER.format(0), ("", None))
    if code or kind != "result":
        missing = [rank for rank in range(infra.ranks) if ANSWER.format(rank) not in found]
        raise Killed(f"site '{job.view.name}': rank {missing[0] if missing else 0} of {infra.ranks} was ended")
    assert isinstance(value, Trained)
    return value
