"""The fork server: a process that has imported composer once and forks a child for every job.

Started by launch.py as `python -c`, so that it never sees the __main__ of the program that launches. Why not
multiprocessing's own: it imports __main__ again in every child, hands the parent no signals or exit codes
of grandchildren, and leaves shared memory behind when a child is killed. It must never touch CUDA: a context
does not survive a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import traceback
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

from photon_core.training.scratch import remove_job

MESSAGE_BYTES = 1 << 16


@dataclass
class _Child:
    job: int
    folder: Path


class _Server:
    """Serves one launcher over a SOCK_SEQPACKET socket, JSON messages, until that socket is closed."""

    def __init__(self, control: socket.socket, lock: int, scratch: Path) -> None:
        self.control = control
        self.lock = lock
        self.scratch = scratch
        self.children: dict[int, _Child] = {}
        self.wake_read, self.wake_write = os.pipe()

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone: the next read says so
            self.control.send(json.dumps(message).encode())

    def preload(self, modules: list[str]) -> bool:
        """Import the modules one by one; False when the launcher has gone or an import has failed."""
        for module in modules:
            if select.select([self.control], [], [], 0)[0] and not self.control.recv(1, socket.MSG_PEEK):
                return False
            try:
                importlib.import_module(module)
            except Exception:
                self.tell(op="failed", text=f"cannot import {module}:\n{traceback.format_exc(limit=-3)}")
                return False
        gc.collect()
        gc.freeze()  # keeps the pages of what was imported shared between the children
        return True

    def serve(self) -> None:
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # composer has put a handler of its own there
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        resource_tracker.ensure_running()  # one for all, and outside the process groups that are killed
        self.tell(op="ready", pid=os.getpid())
        while True:
            readable, _, _ = select.select([self.control.fileno(), self.wake_read], [], [])
            if self.wake_read in readable:
                os.read(self.wake_read, 4096)
                self.reap()
            if self.control.fileno() in readable and not self.handle():
                return

    def handle(self) -> bool:
        """Handle one message; False when the launcher has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 1)
        except OSError:
            return False
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "start":
            self.start(message, descriptors[0])
        elif message["op"] == "kill":
            for pid, child in self.children.items():
                if child.job == message["job"]:
                    _kill_group(pid, message["signal"])
        return True

    def start(self, message: dict[str, Any], channel: int) -> None:
        server = os.getpid()
        folder = Path(message["folder"])
        pid = os.fork()
        if pid == 0:
            self._become_child(message, folder, channel, server)
        os.close(channel)
        self.children[pid] = _Child(message["job"], folder)
        self.tell(op="started", job=message["job"], pid=pid)

    def _become_child(self, message: dict[str, Any], folder: Path, channel: int, server: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for descriptor in (self.lock, self.wake_read, self.wake_write):
                os.close(descriptor)
            from photon_core.training.child import run_child

            code = run_child(folder, channel, message["log"], message["threads"], server)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reap(self) -> None:
        """Bury the children that have ended: the rest of their group, their shared memory, their folder."""
        for pid in list(self.children):
            # WNOWAIT keeps the number reserved until the group that bears it is gone
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            self.bury(pid)

    def bury(self, pid: int) -> None:
        child = self.children.pop(pid)
        _kill_group(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        remove_job(child.folder, forget=lambda name: resource_tracker.unregister(name, "shared_memory"))
        self.tell(op="exited", job=child.job, status=os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """End everything: the launcher has gone, on purpose or not."""
        for pid in list(self.children):
            _kill_group(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it may not have a group of its own yet
            self.bury(pid)
        shutil.rmtree(self.scratch, ignore_errors=True)
        stop = getattr(resource_tracker._resource_tracker, "_stop", None)
        if stop is not None:
            stop()


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def main(control: int, lock: int, scratch: str, modules: list[str]) -> None:
    """Serve until the launcher closes its end.

    Args:
        control: descriptor of the SOCK_SEQPACKET socket to the launcher.
        lock: descriptor of the scratch folder's lock, held by being open.
        scratch: the launcher's scratch folder, removed at the end.
        modules: names of the modules to import ahead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(socket.socket(fileno=control), lock, Path(scratch))
    try:
        if server.preload(modules):
            server.serve()
    finally:
        server.close()
        os._exit(0)  # atexit hooks of what was imported have nothing to do here
