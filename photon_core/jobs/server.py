"""The fork server: a process that has imported composer once and forks a child for every job.

sharing.py starts it as `python -c`, so that it never sees the __main__ of the launching program. The fork server
of multiprocessing does not suffice: it imports __main__ again in every child, gives the parent no signals or exit
codes of grandchildren, and leaves shared memory behind when a child is killed. The server must never touch CUDA: a
context does not survive a fork.

It exchanges JSON messages with launchers over SOCK_SEQPACKET sockets. When a launcher is gone, for any reason, its
children are killed.
"""

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import traceback
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

from photon_core.jobs.channel import readable
from photon_core.jobs.scratch import remove_job
from photon_core.jobs.sharing import ENVIRONMENT

MESSAGE_BYTES = 1 << 16
KEPT = {*ENVIRONMENT, "PYTHONPATH"}  # variables of the server that its children inherit


class _Client:
    """A launcher: its socket and, once known, its scratch folder and the folder's lock, held while it is open."""

    def __init__(self, control: socket.socket, lock: int = -1, scratch: Path | None = None) -> None:
        self.control = control
        self.lock = lock
        self.scratch = scratch
        self.gone = False

    def send(self, **message: Any) -> None:
        # a launcher that is gone is noticed at the next read; one that does not read must not block the others
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)

    def descriptors(self) -> list[int]:
        return [descriptor for descriptor in (self.control.fileno(), self.lock) if descriptor >= 0]

    def close(self) -> None:
        """Remove the scratch folder, then release its lock."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
        self.control.close()


@dataclass
class _Child:
    client: _Client
    job: int
    folder: Path


class _Server:
    """Serves one launcher, or all that connect to a listening socket while its lifeline is open.

    Args:
        client: the only launcher; None for a shared server.
        listener: listening socket of a shared server.
        lifeline: pipe of a shared server; the server accepts no more launchers when its other end closes.
        held: further descriptors that children must not inherit.
    """

    def __init__(
        self,
        client: _Client | None = None,
        listener: socket.socket | None = None,
        lifeline: int | None = None,
        held: tuple[int, ...] = (),
    ) -> None:
        self.clients = [client] if client is not None else []
        self.listener = listener
        self.lifeline = lifeline
        self.held = held
        self.children: dict[int, _Child] = {}
        self.wake_read, self.wake_write = os.pipe()
        self.inherited = set(os.environ) - KEPT

    def preload(self, modules: list[str]) -> bool:
        """Import the modules one by one. False if nobody waits any more, or an import fails."""
        for module in modules:
            if self.abandoned():
                return False
            try:
                importlib.import_module(module)
            except Exception:
                text = f"cannot import {module}:\n{traceback.format_exc(limit=-3)}"
                print(text, flush=True)
                for client in self.clients:
                    client.send(op="failed", text=text)
                return False
        gc.collect()
        gc.freeze()  # keeps the memory pages of imported modules shared between the children
        return True

    def abandoned(self) -> bool:
        """Whether the only launcher is gone, or the shared server's lifeline is closed."""
        if self.lifeline is not None:
            return bool(readable([self.lifeline], 0))
        control = self.clients[0].control
        return bool(readable([control.fileno()], 0)) and not control.recv(1, socket.MSG_PEEK)

    def serve(self) -> None:
        """Serve until the last client is gone and no other can connect."""
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # composer has installed its own handler
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        resource_tracker.ensure_running()  # one for all children, outside the process groups that are killed
        for client in self.clients:
            client.send(op="ready", pid=os.getpid())
        while self.clients or self.listener is not None:
            self.turn()

    def turn(self) -> None:
        """Wait for the next event and handle it."""
        present = {client.control.fileno(): client for client in self.clients if not client.gone}
        doors = [self.listener.fileno()] if self.listener is not None else []
        lines = [self.lifeline] if self.lifeline is not None else []
        ready = readable([self.wake_read, *present, *doors, *lines])
        if self.wake_read in ready:
            os.read(self.wake_read, 4096)
            self.reap()
        for descriptor, client in present.items():
            if descriptor in ready and not self.serve_one(client):
                self.drop(client)
        if self.listener is not None and self.listener.fileno() in ready:
            with contextlib.suppress(OSError):  # the launcher has already disconnected
                self.clients.append(_Client(self.listener.accept()[0]))
        if self.lifeline in ready:
            self.stop_accepting()

    def stop_accepting(self) -> None:
        """Accept no more launchers."""
        if self.listener is not None and self.lifeline is not None:
            self.listener.close()
            os.close(self.lifeline)
            self.listener = self.lifeline = None

    def serve_one(self, client: _Client) -> bool:
        """`handle`, where an error (no memory or descriptor for a child, an invalid message) ends the jobs of this
        launcher only. False when the launcher must be dropped."""
        try:
            return self.handle(client)
        except Exception:
            traceback.print_exc()
            return False

    def handle(self, client: _Client) -> bool:
        """Handle one message. False if the launcher is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(client.control, MESSAGE_BYTES, 1)
        except OSError:
            return False
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "hello":
            client.lock, client.scratch = descriptors[0], Path(message["scratch"])
            client.send(op="ready", pid=os.getpid())
        elif message["op"] == "start":
            self.start(client, message, descriptors[0])
        elif message["op"] == "kill":
            for pid, child in self.children.items():
                if child.client is client and child.job == message["job"]:
                    _kill_group(pid, message["signal"])
        return True

    def start(self, client: _Client, message: dict[str, Any], channel: int) -> None:
        server = os.getpid()
        folder = Path(message["folder"])
        try:
            pid = os.fork()
            if pid == 0:
                self._become_child(message, folder, channel, server)
        finally:
            os.close(channel)
        self.children[pid] = _Child(client, message["job"], folder)
        client.send(op="started", job=message["job"], pid=pid)

    def _become_child(self, message: dict[str, Any], folder: Path, channel: int, server: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in self.descriptors():
                os.close(descriptor)
            for name in self.inherited:  # a child has the launcher's environment, not the server's
                os.environ.pop(name, None)
            from photon_core.jobs.child import run_child

            code = run_child(folder, channel, message["log"], message["threads"], server)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def descriptors(self) -> list[int]:
        """Descriptors that the child must close, so that peers see EOF when the server or a launcher dies."""
        own = [self.wake_read, self.wake_write, *self.held]
        if self.listener is not None:
            own.append(self.listener.fileno())
        if self.lifeline is not None:
            own.append(self.lifeline)
        return [*own, *(descriptor for client in self.clients for descriptor in client.descriptors())]

    def reap(self) -> None:
        """Clean up after all children that have ended."""
        for pid in list(self.children):
            # WNOWAIT keeps the process id reserved until its group is gone
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            self.clean_up(pid)

    def clean_up(self, pid: int) -> None:
        """Kill the rest of a child's group, wait for the child, remove its shared memory and folder, report it."""
        child = self.children.pop(pid)
        _kill_group(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        remove_job(child.folder, forget=lambda name: resource_tracker.unregister(name, "shared_memory"))
        child.client.send(op="exited", job=child.job, status=os.waitstatus_to_exitcode(status))
        if child.client.gone:
            self.forget(child.client)

    def drop(self, client: _Client) -> None:
        """Kill the children of a launcher that is gone. `reap` cleans up as they die."""
        client.gone = True
        for pid, child in self.children.items():
            if child.client is client:
                _kill_group(pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # it may not lead a group yet
        self.forget(client)

    def forget(self, client: _Client) -> None:
        """Close the connection of a launcher that is gone, once it has no children left."""
        if not any(child.client is client for child in self.children.values()):
            self.clients.remove(client)
            client.close()

    def close(self) -> None:
        """End everything, also after an error."""
        for client in list(self.clients):
            self.drop(client)
        for pid in list(self.children):
            self.clean_up(pid)
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _run(server: _Server, modules: list[str], scratch: Path) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if server.preload(modules):
            server.serve()
    finally:
        try:
            server.close()
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os._exit(0)  # without the atexit hooks of the imported modules


def main(control: int, lock: int, scratch: str, modules: list[str]) -> None:
    """Serve one launcher until it closes its end.

    Args:
        control: descriptor of the SOCK_SEQPACKET socket to the launcher.
        lock: descriptor of the scratch folder's lock, held while it is open.
        scratch: scratch folder of the launcher, removed at the end.
        modules: names of the modules to preload.
    """
    client = _Client(socket.socket(fileno=control), lock, Path(scratch))
    _run(_Server(client), modules, Path(scratch))


def main_shared(listener: int, lifeline: int, lock: int, scratch: str, modules: list[str]) -> None:
    """Serve every launcher that connects; after the lifeline has closed, only those that are connected.

    Args:
        listener: descriptor of the listening SOCK_SEQPACKET socket.
        lifeline: descriptor of the reading end of a pipe to which nothing is ever written.
        lock: descriptor of the lock of the server's scratch folder, held while it is open.
        scratch: scratch folder of the server, with its socket; removed at the end.
        modules: names of the modules to preload.
    """
    server = _Server(listener=socket.socket(fileno=listener), lifeline=lifeline, held=(lock,))
    _run(server, modules, Path(scratch))
