"""The children of this process: one launcher, made on first use, ended once."""

import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from photon_core.training import entry

if TYPE_CHECKING:
    from photon_core.jobs.launcher import Launcher
    from schemas.federation import Federation
    from schemas.manifests import RoundManifest

TRACKING_TIMEOUT = 120.0

_lock = threading.Lock()
_launcher: "Launcher | None" = None


def launcher() -> "Launcher":
    """This process's launcher: as many children at a time as there are cores.

    They come from the fork server that PHOTON_FORK_SERVER names, which a worker has beside it, if it answers.
    """
    global _launcher
    from photon_core.jobs.launcher import Launcher
    from photon_core.jobs.sharing import VARIABLE

    with _lock:
        if _launcher is None:
            slots = len(os.sched_getaffinity(0))
            _launcher = Launcher(slots, preload=entry.PRELOAD, shared=os.environ.get(VARIABLE))
        return _launcher


def log_round(federation: "Federation", manifest: "RoundManifest") -> None:
    """Tell the experiment trackers of a committed round, in a child. Raises PhotonError if one is away."""
    launcher().run(
        partial(entry.log_round, federation, manifest),
        label=f"{federation.run}/{manifest.round}/trackers",
        timeout=TRACKING_TIMEOUT,
    )


def shutdown() -> None:
    """End every child and the fork server. Safe to call at any time, from any thread, more than once."""
    global _launcher
    with _lock:
        ending, _launcher = _launcher, None
    if ending is not None:
        ending.shutdown()
