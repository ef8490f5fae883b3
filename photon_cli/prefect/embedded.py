"""The Prefect server of an embedded run: one process on a free loopback port, which ends with the run."""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from photon_core.errors import PhotonError
from photon_core.jobs.telemetry import OFF

ADDRESS = "address"  # file in its home while it runs: `photon status` in another terminal reads it
START_SECONDS = 300.0
STOP_SECONDS = 10.0
RESTART_SECONDS = 1.0  # pause before a killed server is restarted
# An embedded run schedules nothing and has no workers: only services that record runs, logs and events stay on.
SERVICES_OFF = ("SCHEDULER", "LATE_RUNS", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "FOREMAN", "REPOSSESSOR",
                "TRIGGERS")  # fmt: skip
CLIENT = {
    **OFF,
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the CLI shows progress; the UI has the logs
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_CLI_WRAP_LINES": "false",
}
LIBC = ctypes.CDLL(None)  # loaded before threads start: a child right after fork must wait for no lock
OF_ANOTHER = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE")  # settings of another server


def prefect_home(file: Path) -> Path:
    """Folder of the embedded server's database, beside the federation file."""
    return file.resolve().parent / ".prefect"


class ServerFailed(PhotonError):
    """The embedded Prefect server did not start. The message names its log."""


class EmbeddedServer:
    """Context manager around `prefect server start`.

    Inside it, PREFECT_API_URL and PREFECT_HOME of this process point to this server. Prefect should be imported
    inside, which is quicker. A server that is killed once it has answered is restarted, with the same port and
    database: Prefect's clients retry for a minute.

    Args:
        home: folder of the server's database, its log and Prefect's settings.
        services: flag: also schedule deployments and act on events, as a separate server does.
    """

    def __init__(self, home: Path, services: bool = False) -> None:
        self.home = home.resolve()
        self.services_off = () if services else SERVICES_OFF
        self.log = self.home / "server.log"
        self._held = hold_port()
        self.port = int(self._held.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._env: dict[str, str] = {}
        self._starting = threading.Lock()
        self._ending = threading.Event()

    def __enter__(self) -> "EmbeddedServer":
        self.home.mkdir(parents=True, exist_ok=True)
        self._before = dict(os.environ)
        os.environ.update(CLIENT, PREFECT_HOME=str(self.home), PREFECT_API_URL=f"{self.url}/api")
        for name in OF_ANOTHER:
            os.environ.pop(name, None)
        _read_settings_again()
        env = os.environ | {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in self.services_off}
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{self.home}/prefect.db"
        self._env = dict(env)
        self._process = self._start()
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        command = [sys.executable, "-m", "photon_cli.prefect.server", *place]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        """Restart the server whenever it ends by itself. Runs in a thread that lasts as long as this process: the
        kernel ends a server with the thread that started it."""
        while True:
            process.wait()
            if self._ending.wait(RESTART_SECONDS):
                return
            with self._starting:
                if self._ending.is_set():
                    return
                self._process = process = self._start()

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ServerFailed: the server ended, or did not answer within START_SECONDS.
        """
        assert self._process is not None
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"the Prefect server ended with code {self._process.returncode}; see {self.log}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/api/health", timeout=2):
                    (self.home / ADDRESS).write_text(f"{self.url}/api")
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            raise ServerFailed(f"the Prefect server did not answer within {START_SECONDS:.0f} s; see {self.log}")
        keeper = threading.Thread(target=self._keep, args=(self._process,), name="photon-server", daemon=True)
        keeper.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._starting:
            self._ending.set()
        self._held.close()
        for name in (*CLIENT, *OF_ANOTHER, "PREFECT_HOME", "PREFECT_API_URL"):
            os.environ.pop(name, None)
            if name in self._before:
                os.environ[name] = self._before[name]
        _read_settings_again()
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            if (self.home / ADDRESS).read_text() == f"{self.url}/api":  # another run's address is kept
                (self.home / ADDRESS).unlink()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            _signal_group(self._process.pid, sign)
            try:
                self._process.wait(STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        _signal_group(self._process.pid, signal.SIGKILL)


def _read_settings_again() -> None:
    """Reload Prefect's settings if it is imported already: without the address, it starts its own server."""
    if "prefect" in sys.modules:
        importlib.import_module("prefect.context").refresh_global_settings_context()


def hold_port() -> socket.socket:
    """A free loopback port. While the socket is open, no other program gets the port, not even for an outgoing
    connection. A server with SO_REUSEADDR, such as Prefect's, may listen on it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _signal_group(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, sign)


def _die_with_parent() -> None:
    """In the child before exec: have the kernel end it when this process is killed (Linux; elsewhere only __exit__
    ends it)."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
