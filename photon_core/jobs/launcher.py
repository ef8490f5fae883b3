"""Runs functions in child processes of a fork server that has imported composer once. Never imports torch.

A child starts in some hundredths of a second, instead of the ten seconds that importing composer takes. Its
memory, its signals and its CUDA context end with it.
"""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from photon_core.errors import Cancelled, ChildFailed, DeadlinePassed, Killed
from photon_core.jobs.channel import Channel, ChannelClosed
from photon_core.jobs.child import REQUEST
from photon_core.jobs.scratch import create_scratch
from photon_core.jobs.sharing import connect, exit_report, next_message, start_process

GRACE = 5.0  # s between SIGTERM and SIGKILL
STUCK = 30.0  # s of SIGKILL after which a child is abandoned: it hangs in a dead disk or driver
TICK = 0.25  # s between checks of deadline and cancellation while a child sends nothing

T = TypeVar("T")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class _Job:
    label: str
    number: int
    pid: int | None = None
    exit_code: int | None = None
    ended: bool = False
    cancelled: bool = False
    sent: bool = False
    messages: list[str] = field(default_factory=list)


class Launcher:
    """Child processes from one fork server, at most `slots` at once. Safe to use from several threads.

    Args:
        slots: maximum number of children at once; by default one for each core. Above one, each child gets one
            thread.
        preload: modules that the fork server imports before it serves.
        shared: socket of a shared fork server (see sharing.py); if it cannot be used, the launcher starts its own.
    """

    def __init__(
        self,
        slots: int | None = None,
        *,
        preload: Sequence[str] = (),
        shared: str | Path | None = None,
    ) -> None:
        self.slots = slots or cores()
        self.threads = max(1, cores() // self.slots) if self.slots == 1 else 1
        self._preload = tuple(preload)
        self._shared = Path(shared) if shared else None
        self._changed = threading.Condition()
        self._jobs: dict[int, _Job] = {}
        self._running = 0
        self._count = 0
        self._closed = False
        self._ready = False
        self._failure: str | None = None
        self._broken = False  # the fork server could not import its modules
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._scratch: Path | None = None

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def warm(self) -> None:
        """Start the fork server in the background, or attach to the shared one. Idempotent; returns at once."""
        with self._changed:
            if self._closed:
                raise Cancelled("the launcher has been shut down")
            if self._control is not None:
                return
            self._failure, self._broken, self._ready = None, False, False
            if self._server is not None:  # it has died by itself
                self._server.wait()
                self._server = None
            if not self._attach():
                self._start_server()

    def _attach(self) -> bool:
        connection = connect(self._shared) if self._shared is not None else None
        if connection is None:
            return False
        scratch, lock = create_scratch()
        try:
            socket.send_fds(connection, [json.dumps({"op": "hello", "scratch": str(scratch)}).encode()], [lock])
        except OSError:
            connection.close()
            shutil.rmtree(scratch, ignore_errors=True)
            return False
        finally:
            os.close(lock)  # the server holds it now
        self._begin(connection, scratch)
        return True

    def _start_server(self) -> None:
        scratch, lock = create_scratch()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        call = f"main({theirs.fileno()}, {lock}, {str(scratch)!r}, {list(self._preload)!r})"
        self._server = start_process("server", call, (theirs.fileno(), lock), scratch / "server.log")
        theirs.close()
        os.close(lock)
        self._begin(ours, scratch)

    def _begin(self, control: socket.socket, scratch: Path) -> None:
        self._control, self._scratch = control, scratch
        threading.Thread(target=self._listen, args=(control,), daemon=True, name="photon-launcher").start()

    def _listen(self, control: socket.socket) -> None:
        """Handle the server's messages until it is gone."""
        while True:
            data = next_message(control)
            ending = "" if data else exit_report(self._server, self._scratch)
            with self._changed:
                if data:
                    self._take(json.loads(data))
                elif self._control is control:
                    self._control = None
                    self._failure = self._failure or ending
                    for job in self._jobs.values():
                        job.ended = True
                self._changed.notify_all()
            if not data:
                control.close()
                return

    def _take(self, message: dict[str, Any]) -> None:
        if message["op"] == "ready":
            self._ready = True
        elif message["op"] == "failed":
            self._failure, self._broken = message["text"], True
        elif job := self._jobs.get(message["job"]):
            if message["op"] == "started":
                job.pid = message["pid"]
                if job.cancelled:
                    self._signal(job, signal.SIGTERM)
            else:
                job.exit_code, job.ended = message["status"], True

    def run(
        self,
        function: Callable[..., T],
        *,
        label: str,
        timeout: float | None = None,
        on_report: Callable[[dict[str, Any]], None] | None = None,
        log_path: str | Path | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> T:
        """Call `function()` in a child process, wait, and return its result.

        Args:
            function: function of a module, with picklable arguments bound by functools.partial. If a parameter
                `report` is left, the child passes a function that sends a dict to `on_report`.
            label: name of the job in messages and for `cancel`.
            timeout: maximum seconds of this call, including the wait for a free slot.
            on_report: callback for each report, in this thread.
            log_path: file to which the child's standard output and error are appended.
            on_start: callback when a slot is free and the child is about to start.

        Raises:
            PhotonError: the function raised it.
            ChildFailed: the function raised another error, or the child was killed.
            Cancelled: `cancel` or `shutdown` ended it.
            DeadlinePassed: the timeout has passed; the child and its own children have been ended.
        """
        deadline = time.monotonic() + timeout if timeout is not None else None
        call = pickle.dumps(function)
        with self._slot(label, deadline) as job:
            on_start()
            answer = self._try(job, call, deadline, on_report, log_path)
            if answer is None and self._abandoned(job):
                answer = self._try(job, call, deadline, on_report, log_path)
        if answer is None:
            raise self._exit_error(job)
        if answer[0] == "error":
            raise answer[1]
        result: T = answer[1]
        return result

    def _try(
        self,
        job: _Job,
        call: bytes,
        deadline: float | None,
        on_report: Callable[[dict[str, Any]], None] | None,
        log_path: str | Path | None,
    ) -> tuple[str, Any] | None:
        self.warm()
        started = self._start_job(job, call, log_path)
        if started is None:
            return None
        channel, folder = started
        try:
            return self._converse(job, channel, deadline, on_report)
        finally:
            channel.close()
            self._end(job)
            if job.ended or job.pid is None:  # else the server removes the folder when the child ends
                shutil.rmtree(folder, ignore_errors=True)

    def _abandoned(self, job: _Job) -> bool:
        """Whether the shared server ended before it started the job. The launcher's own server then runs it."""
        with self._changed:
            if self._shared is None or self._server is not None or job.pid is not None or job.cancelled:
                return False
            if job.exit_code is not None or self._closed:
                return False
            if not self._changed.wait_for(lambda: self._control is None, 1.0):
                return False
            self._shared = None
            job.ended = job.sent = False
            return True

    @contextmanager
    def _slot(self, label: str, deadline: float | None) -> Iterator[_Job]:
        with self._changed:
            self._count += 1
            job = self._jobs[self._count] = _Job(label, self._count)
            try:
                while self._running >= self.slots and not job.cancelled:
                    _check_deadline(job, deadline)
                    self._changed.wait(TICK)
                if job.cancelled:
                    raise Cancelled(f"{label}: cancelled")
            except BaseException:
                del self._jobs[job.number]
                raise
            self._running += 1
        try:
            yield job
        finally:
            with self._changed:
                self._running -= 1
                del self._jobs[job.number]
                self._changed.notify_all()

    def _start_job(self, job: _Job, call: bytes, log_path: str | Path | None) -> tuple[Channel, Path] | None:
        """Request a child from the server; None if the server is gone."""
        with self._changed:
            scratch, control = self._scratch, self._control
        if scratch is None or control is None:
            return None
        folder = scratch / f"job-{job.number:06d}"
        folder.mkdir()
        place = {"environment": dict(os.environ), "folder": str(Path.cwd()), "path": list(sys.path)}
        (folder / REQUEST).write_bytes(pickle.dumps((place, call)))
        log = Path(log_path).absolute() if log_path is not None else scratch / "children.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        message = {
            "op": "start",
            "job": job.number,
            "folder": str(folder),
            "log": str(log),
            "threads": self.threads,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(control, [json.dumps(message).encode()], [theirs.fileno()])
                job.sent = True
            except OSError:
                ours.close()
                return None
        return Channel(ours), folder

    def _converse(
        self,
        job: _Job,
        channel: Channel,
        deadline: float | None,
        on_report: Callable[[dict[str, Any]], None] | None,
    ) -> tuple[str, Any] | None:
        """Forward reports until the answer comes; None if the child ended without one."""
        while True:
            _check_deadline(job, deadline)
            over = job.ended or job.cancelled  # checked before the last read, so that no answer is lost
            try:
                message = channel.receive(0 if over else TICK)
            except ChannelClosed:
                return None
            if message is None:
                if over:
                    return None
            elif message[0] == "report":
                if on_report is not None:
                    on_report(message[1])
            else:
                return message

    def _end(self, job: _Job) -> None:
        """Wait until the child is gone and its files are removed; kill it after GRACE, abandon it after STUCK."""
        kill_at = time.monotonic() + GRACE
        number = signal.SIGTERM
        with self._changed:
            if not job.sent:
                return
            finishing = self._changed.wait_for(lambda: job.ended, 0.5)
            if not finishing and job.pid is None and not self._ready:
                job.cancelled = True  # the server has not forked it yet, and ends it as soon as it does
                return
            while not finishing and time.monotonic() < kill_at + STUCK:
                self._signal(job, number)
                finishing = self._changed.wait_for(lambda: job.ended, 0.5)
                if time.monotonic() > kill_at:
                    number = signal.SIGKILL

    def _signal(self, job: _Job, number: signal.Signals) -> None:
        """Signal the job's process group through the server, which knows whether it still exists."""
        if self._control is not None:
            with suppress(OSError):
                self._control.send(json.dumps({"op": "kill", "job": job.number, "signal": number}).encode())

    def _exit_error(self, job: _Job) -> ChildFailed:
        """The error of a job that ended without an answer."""
        if job.cancelled:
            return Cancelled(f"{job.label}: cancelled")
        if job.pid and not job.ended:
            return ChildFailed(
                f"{job.label}: process {job.pid} did not exit after SIGKILL; a disk or GPU driver hangs"
            )
        if job.exit_code is None:
            kind = ChildFailed if self._broken else Killed
            return kind(f"{job.label}: the fork server has ended. {self._failure or ''}".rstrip())
        if job.exit_code < 0:
            name = signal.Signals(-job.exit_code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return Killed(f"{job.label}: killed by {name}{hint}")
        return ChildFailed(f"{job.label}: exited with code {job.exit_code} and without an answer; see its log")

    def cancel(self, label: str) -> int:
        """End every running or waiting job of this label; its `run` raises Cancelled.

        Returns:
            Number of jobs.
        """
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.label == label]
            self._cancel(jobs)
        return len(jobs)

    def cancel_below(self, prefix: str) -> int:
        """`cancel` every job whose label starts with `prefix`."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.label.startswith(prefix)]
            self._cancel(jobs)
        return len(jobs)

    def _cancel(self, jobs: list[_Job]) -> None:
        for job in jobs:
            job.cancelled = True
            self._signal(job, signal.SIGTERM)
        self._changed.notify_all()

    def shutdown(self) -> None:
        """End all children and the fork server, and wait until they are gone. No job can be run afterwards."""
        with self._changed:
            self._closed = True
            self._cancel(list(self._jobs.values()))
            self._changed.wait_for(lambda: not self._jobs, GRACE + 1)
            server, control, ready = self._server, self._control, self._ready
            self._server = self._control = None
        if control is not None:
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        if server is not None:
            if not ready:
                server.kill()  # it still imports, and has no children
            try:
                server.wait(GRACE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _check_deadline(job: _Job, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlinePassed(f"{job.label}: stopped at its deadline")
