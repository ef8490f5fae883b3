"""What a flow run works with in its process: the children, the reports, and the log of what happens."""

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
REGIONS = 2  # that are averaged at a time in a process: each takes its own memory


class Runtime:
    """Handed to every task. `launcher` and `reports` are the process's, `log` is the flow run's.

    As many children work at a time as there are cores. They come from the fork server that PHOTON_FORK_SERVER
    names, which a worker has beside it, if it answers; else from one of their own, started when first needed.

    Args:
        listeners: hear of every event of the flow runs, in the thread where it happens.
    """

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        slots = len(os.sched_getaffinity(0))
        self.launcher = Launcher(slots, preload=entry.PRELOAD, shared=os.environ.get(VARIABLE))
        self.reports = Reports()
        self.regions = threading.BoundedSemaphore(REGIONS)
        self.log = Log("")
        self._listeners = tuple(listeners)

    def of(self, run: str, actor: str = COORDINATOR) -> "Runtime":
        """The same, with a new log."""
        made = copy(self)
        made.log = Log(run, actor, self._listeners)
        return made

    def shutdown(self) -> None:
        """End every child and the fork server. Safe to call at any time, from any thread, more than once."""
        self.launcher.shutdown()
        self.reports.close()


@contextmanager
def runtime(*listeners: Listener) -> Iterator[Runtime]:
    """That of all flow runs in the block; its children end with the block."""
    made = Runtime(listeners)
    token = AROUND.set(made)
    try:
        yield made
    finally:
        AROUND.reset(token)
        made.shutdown()


@contextmanager
def runtime_of(federation: "Federation", actor: str = COORDINATOR) -> Iterator[Runtime]:
    """A flow run's, with a log of its own. One in no block has children of its own: they end with it when it is
    cancelled, too, the trainer's whole process group."""
    around = AROUND.get()
    with nullcontext(around) if around is not None else runtime() as process:
        yield process.of(federation.run, actor)


def log_round(launcher: Launcher, federation: "Federation", manifest: "RoundManifest") -> None:
    """Tell the experiment trackers of a committed round, in a child. Raises PhotonError if one is away."""
    launcher.run(
        partial(entry.log_round, federation, manifest),
        label=f"{federation.run}/{manifest.round}/trackers",
        timeout=TRACKING_TIMEOUT,
    )
