"""Shared objects of a flow run's process: child processes, reports and the event log."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from photon_core.evidence.events import COORDINATOR, Listener, Log
from photon_core.jobs.launcher import Launcher
from photon_core.jobs.sharing import VARIABLE
from photon_core.training import entry
from tasks.reporting import Reports

if TYPE_CHECKING:
    from schemas.federation import Federation
    from schemas.manifests import RoundManifest

AROUND: ContextVar["Runtime | None"] = ContextVar("the runtime of the block that a flow run is in", default=None)
TRACKING_TIMEOUT = 120.0
REGIONS = 2  # regions averaged at once in a process: each needs its own memory


class Runtime:
    """Passed to every task. `launcher` and `reports` belong to the process, `log` to the flow run.

    At most one child per core works at a time. Children come from the fork server of PHOTON_FORK_SERVER, which
    runs beside a worker, if it answers; else from a separate one, started when first needed.

    Args:
        listeners: callbacks for every event of the flow runs, called in the event's thread.
    """

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        slots = len(os.sched_getaffinity(0))
        self.launcher = Launcher(slots, preload=entry.PRELOAD, shared=os.environ.get(VARIABLE))
        self.reports = Reports()
        self.regions = threading.BoundedSemaphore(REGIONS)
        self.log = Log("")
        self._listeners = tuple(listeners)

    def of(self, run: str, actor: str = COORDINATOR) -> "Runtime":
        """A copy with a new log."""
        made = copy(self)
        made.log = Log(run, actor, self._listeners)
        return made

    def shutdown(self) -> None:
        """End every child and the fork server. Idempotent and thread-safe."""
        self.launcher.shutdown()
        self.reports.close()


@contextmanager
def runtime(*listeners: Listener) -> Iterator[Runtime]:
    """The runtime of all flow runs in the block. Its children end with the block."""
    made = Runtime(listeners)
    token = AROUND.set(made)
    try:
        yield made
    finally:
        AROUND.reset(token)
        made.shutdown()


@contextmanager
def runtime_of(federation: "Federation", actor: str = COORDINATOR) -> Iterator[Runtime]:
    """The runtime of a flow run, with its own log. Outside a block, the flow run has its own children. They end
    with it, also when it is cancelled, including the trainer's whole process group."""
    around = AROUND.get()
    with nullcontext(around) if around is not None else runtime() as process:
        yield process.of(federation.run, actor)


def log_round(launcher: Launcher, federation: "Federation", manifest: "RoundManifest") -> None:
    """Log a committed round to the experiment trackers, in a child. Raises PhotonError if one is unreachable."""
    launcher.run(
        partial(entry.log_round, federation, manifest),
        label=f"{federation.run}/{manifest.round}/trackers",
        timeout=TRACKING_TIMEOUT,
    )
