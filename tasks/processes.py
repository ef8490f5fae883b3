"""The children of this process: one launcher, made on first use, ended once."""

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from photon_core.training.launch import Launcher

_lock = threading.Lock()
_launcher: "Launcher | None" = None


def launcher() -> "Launcher":
    """This process's launcher: as many children at a time as there are cores.

    They come from the fork server that PHOTON_FORK_SERVER names, which a worker has beside it, if it answers.
    """
    global _launcher
    from photon_core.training.launch import Launcher
    from photon_core.training.serving import VARIABLE

    with _lock:
        if _launcher is None:
            _launcher = Launcher(slots=len(os.sched_getaffinity(0)), shared=os.environ.get(VARIABLE))
        return _launcher


def shutdown() -> None:
    """End every child and the fork server. Safe to call at any time, from any thread, more than once."""
    global _launcher
    with _lock:
        ending, _launcher = _launcher, None
    if ending is not None:
        ending.shutdown()
