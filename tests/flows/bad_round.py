"""One deployed round in which every site has another failure: what is done to each site, and the result."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.manifests import RoundManifest
from tests.flows.deployment import Damage, Deployed, Workers, eventually

SITES = ("trainer", "process", "worker", "exception", "full", "corrupt")
STEPS = 600
DISK = "8m"
ROOM = 180_000  # bytes left: enough for the global model, not for the state that training leaves


@dataclass
class BadRound:
    """
    Attributes:
        manifest: of the round.
        message: of the round's flow run's final state.
        table: the round's table artifact.
        seconds: site -> from its failure to its committed update.
        disk: why there is no disk that can be full, if there is none.
    """

    manifest: RoundManifest
    message: str
    table: str
    seconds: dict[str, float] = field(default_factory=dict)
    disk: str = ""


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A file system of a few megabytes at `folder`. Yields why not, if it cannot be had."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "photon-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    try:
        yield "" if done.returncode == 0 else f"mounting a small disk is not allowed here: {done.stderr.strip()}"
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def break_everything(federation: Deployed, workers: Workers, disk: str) -> BadRound:
    """Run the round and do to each of SITES what its name says."""
    damaged = federation.damage("exception")
    filler = None if disk else fill(federation.folder("full"))
    since: dict[str, float] = {}
    round_run = federation.start_round()

    def kill_trainer() -> None:
        since["trainer"] = kill(with_checkpoint(federation, "trainer"))

    def kill_process() -> None:
        pid = federation.process_of(federation.site_run("process", 1, "RUNNING"))
        with_checkpoint(federation, "process")
        since["process"] = kill(pid)

    def kill_worker() -> None:
        pid = federation.process_of(federation.site_run("worker", 1, "RUNNING"))
        with_checkpoint(federation, "worker")
        workers.kill("far")
        since["worker"] = kill(pid)
        workers.start("far")  # as whatever keeps it alive on its machine does

    with ThreadPoolExecutor(3) as pool:  # each as soon as its site trains, whichever is first
        for done in [pool.submit(act) for act in (kill_trainer, kill_process, kill_worker)]:
            done.result()

    since["exception"] = failed(federation, "exception")
    damaged.mend()
    federation.retry(federation.site_run("exception", 1))
    if filler is not None:
        since["full"] = failed(federation, "full")
        filler.unlink()
        federation.retry(federation.site_run("full", 1))

    eventually(lambda: federation.run.update(1, "corrupt", 1), "corrupt commits")
    Damage(next(committed(federation, "corrupt").parent.glob("*.safetensors")))
    state = federation.ended(round_run)
    assert state.is_completed(), state
    seconds = {site: committed(federation, site).stat().st_mtime - at for site, at in since.items()}
    return BadRound(federation.rounds()[-1], state.message, federation.table(), seconds, disk)


def with_checkpoint(federation: Deployed, site: str) -> int:
    """The process that trains the site, once its first local checkpoint is in place."""
    pid, folder = federation.trainer(site), federation.folder(site) / "state" / "checkpoint"
    eventually(lambda: any(folder.glob("*.pt")), f"{site} has a checkpoint", every=0.01)
    return pid


def fill(folder: Path) -> Path:
    """Fill the disk but for ROOM bytes. Returns the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(filler.stat().st_size - ROOM)
    return filler


def committed(federation: Deployed, site: str) -> Path:
    """The manifest that commits the site's update for round 1."""
    run = federation.run
    return Path(federation.federation.store) / run.site_dir(1, site, 1) / "update.json"


def kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.time()


def failed(federation: Deployed, site: str, t: int = 1) -> float:
    """Wait until the site's flow run has failed. Returns when it did, Unix time."""
    state: Any = federation.site_run(site, t, "FAILED").state
    return float(state.timestamp.timestamp())
