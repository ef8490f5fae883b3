"""Processes that are restarted as by systemd, with access to every process that descends from them.

A service has a mark in its environment, which its descendants inherit: the mark takes the place of systemd's
control group. A process that loses its parent becomes a child of this process (Linux: child subreaper), which
reaps it.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "PHOTON_BENCHMARK_SERVICE"
RESTART_SECONDS = 0.1  # systemd's RestartSec
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL of a service's remaining processes
FORK_SERVER = "from photon_core.jobs import server"
FLOW_RUN = "PREFECT__FLOW_RUN_ID="
PR_SET_CHILD_SUBREAPER = 36

_starting = threading.Lock()  # so that a process that was just started does not look like an adopted one


@dataclass
class Service:
    """A service with Restart=always, or until it ends by itself with code 0.

    Args:
        name: name of the unit.
        role: name of its main process in the tables.
        command: command with its arguments.
        env: complete environment.
        log: file to which its output is appended.
        until_done: flag: do not restart it after exit code 0.
    """

    name: str
    role: str
    command: Sequence[str]
    env: dict[str, str]
    log: Path
    until_done: bool = False
    starts: int = 0
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    pid: int | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> "Service":
        self._thread = threading.Thread(target=self._keep, name=self.name, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it and all its descendants permanently."""
        self._over.set()
        if self.pid is not None:
            _signal([self.pid], signal.SIGTERM)
        assert self._thread is not None
        self._thread.join(STOP_SECONDS)
        self._clear()
        self._thread.join()

    def members(self) -> list[int]:
        """Ids of all running processes with the mark."""
        return [pid for pid in _pids() if self.mark in _environment(pid)]

    def _keep(self) -> None:
        while not self._over.is_set():
            with self.log.open("ab") as output, _starting:
                process = subprocess.Popen(
                    self.command, env={**self.env, MARK: self.mark}, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
                self.pid = process.pid
                self.starts += 1
            code = process.wait()
            self.pid = None
            self._clear()
            if self.until_done and code == 0:
                return
            self._over.wait(RESTART_SECONDS)

    def _clear(self) -> None:
        """KillMode=control-group: SIGTERM to the remaining processes, then SIGKILL to those that do not end."""
        limit = time.monotonic() + STOP_SECONDS
        sign = signal.SIGTERM
        while left := self.members():
            _signal(left, sign)
            while self.members() and time.monotonic() < limit:
                time.sleep(0.1)
            sign = signal.SIGKILL


class Services:
    """All services of one machine. A context manager: it ends them all."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.all: list[Service] = []

    def __enter__(self) -> "Services":
        return self

    def __exit__(self, *_error: object) -> None:
        for service in reversed(self.all):
            service.stop()
        reap(self.all)

    def start(self, service: Service) -> Service:
        self.all.append(service)
        return service.start()

    def roles(self) -> dict[str, list[int]]:
        """Role -> ids of the processes that have it now, in ascending order."""
        mains = {service.pid: service.role for service in self.all if service.pid is not None}
        found: dict[str, list[int]] = {}
        for service in self.all:
            for pid in service.members():
                if role := mains.get(pid) or _role(pid):
                    found.setdefault(role, []).append(pid)
        return found


def reap(services: Iterable[Service]) -> None:
    """Reap adopted children that have ended. Call it only while nothing waits for another child of this
    process."""
    with _starting:
        mains = {service.pid for service in services}
        for pid in _pids():
            if pid not in mains and _parent(pid) == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _role(pid: int) -> str | None:
    """Role of a process that a service has started."""
    command = _command(pid)
    if "photon_cli.prefect.server" in command:
        return "server"
    if FORK_SERVER in command:
        return "trainer" if FORK_SERVER in _command(_parent(pid)) else "fork server"
    if FLOW_RUN in _environment(pid) and "resource_tracker" not in command:
        return "flow run"
    return None


def _pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _environment(pid: int) -> str:
    """Environment of a process at its start; empty for one that has ended or cannot be read."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _signal(pids: Iterable[int], sign: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
