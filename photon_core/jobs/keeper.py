"""Keeps a shared fork server running: one that is killed, such as by the kernel for memory, is started again.

Without it, every flow run after such a kill would import composer itself, as long as the worker runs.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from photon_core.jobs.channel import readable
from photon_core.jobs.sharing import start_process

PAUSE = 2.0  # s before a killed server is started again


def main(listener: int, lifeline: int, lock: int, scratch: str, modules: Sequence[str]) -> None:
    """Run the server until it ends by itself, or is killed after the lifeline has closed.

    The listening socket stays open meanwhile: launchers that connect wait for the next server.

    Args:
        listener, lifeline, lock, scratch, modules: arguments of server.main_shared.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, held = Path(scratch), (listener, lifeline, lock)
    call = f"main_shared({listener}, {lifeline}, {lock}, {scratch!r}, {list(modules)!r})"
    while start_process("server", call, held, folder / "server.log", session=False).wait():
        if readable([lifeline], PAUSE):
            return  # the next scratch folder's maker removes this one
