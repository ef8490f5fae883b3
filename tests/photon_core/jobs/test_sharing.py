"""The shared fork server: several launchers at once, each with its own; who may use it; when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import ChildFailed
from photon_core.jobs.launcher import Launcher
from photon_core.jobs.sharing import VARIABLE, connect, next_message, serve
from tests.processes import alive, wait_until

ROOT = Path(__file__).parents[3]


def where() -> dict[str, Any]:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that this look itself takes
            links.append(str(descriptor.readlink()))
    return {
        "server": os.getppid(),
        "modules": sorted(sys.modules),
        "theirs": os.environ.get("PHOTON_TEST_THEIRS"),
        "ours": os.environ.get("PHOTON_TEST_OURS"),
        "links": sorted(link.partition(":")[0] for link in links if not link.startswith("/")),
    }


def hold(report: Callable[[dict[str, Any]], None]) -> None:
    report({"pid": os.getpid(), "server": os.getppid(), "folder": os.environ["TMPDIR"]})
    time.sleep(300)


class Holder:
    """A job that lasts, in a thread."""

    def __init__(self, launcher: Launcher, label: str = "holder") -> None:
        self.seen: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._launcher, self._label, self._ready = launcher, label, threading.Event()
        self._thread = threading.Thread(target=self._body)
        self._thread.start()
        assert self._ready.wait(200)

    def _body(self) -> None:
        def report(values: dict[str, Any]) -> None:
            self.seen.update(values)
            self._ready.set()

        try:
            self._launcher.run(hold, label=self._label, on_report=report)
        except ChildFailed as error:
            self.error = error

    def join(self) -> str:
        self._thread.join(120)
        return str(self.error)


@pytest.fixture
def socket_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PHOTON_TEST_THEIRS", "set where the server was started")
    with serve(preload=("json", "photon_core.errors")) as environment:
        monkeypatch.delenv("PHOTON_TEST_THEIRS")
        yield environment[VARIABLE]


def test_launchers_share_one_server_with_its_imports(socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTON_TEST_OURS", "set where it is launched")
    with Launcher(2, shared=socket_path) as first, Launcher(2, shared=socket_path) as second:
        one, two = first.run(where, label="one"), second.run(where, label="two")
        assert one["server"] == two["server"] != os.getpid()
        assert "json" in one["modules"] and "torch" not in one["modules"]
        assert one["theirs"] is None and one["ours"] == "set where it is launched"
        assert one["links"] == two["links"] == ["pipe", "socket"]  # to the resource tracker, and to its launcher
        assert first._server is second._server is None
    assert Path(socket_path).exists()
    with Launcher(1, shared=socket_path) as third:
        assert third.run(os.getppid, label="three") == one["server"]


def test_one_launchers_end_is_not_anothers(socket_path: str) -> None:
    with Launcher(1, shared=socket_path) as first, Launcher(1, shared=socket_path) as second:
        one, two = Holder(first), Holder(second)  # both are their launchers' job 1
        assert first.cancel("holder") == 1
        assert one.join() == "holder: cancelled"
        assert not alive(one.seen["pid"]) and alive(two.seen["pid"])
        again = Holder(first)
        first.shutdown()
        assert again.join() == "holder: cancelled"
        assert not alive(again.seen["pid"]) and not Path(again.seen["folder"]).parent.exists()
        assert alive(two.seen["pid"])
        second.cancel("holder")
        assert two.join() == "holder: cancelled"


@pytest.mark.parametrize("message", [b"\xff", b"[]", b"{}", b'{"op": "start", "job": 1, "folder": "/nowhere"}'])
def test_what_cannot_be_done_for_one_is_not_the_end_of_others(socket_path: str, message: bytes) -> None:
    """As when there is no memory, or no descriptor, for a child."""
    with Launcher(1, shared=socket_path) as launcher:
        holder = Holder(launcher)
        broken = connect(Path(socket_path))
        assert broken is not None
        broken.send(message)
        broken.settimeout(60)
        assert broken.recv(1) == b""
        broken.close()
        assert alive(holder.seen["pid"])
        launcher.cancel("holder")
        assert holder.join() == "holder: cancelled"
        assert launcher.run(os.getppid, label="next") == holder.seen["server"]


CLIENT = """
import sys
from photon_core.jobs.launcher import Launcher
from tests.photon_core.jobs.test_sharing import hold
def show(values):
    print(values["pid"], values["folder"], flush=True)
Launcher(1, shared=sys.argv[1]).run(hold, label="x", on_report=show)
"""


def test_a_killed_launcher_takes_its_children_along(socket_path: str) -> None:
    with Launcher(1, shared=socket_path) as other:
        survivor = Holder(other)
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, socket_path], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as client:
            assert client.stdout is not None
            pid, folder = client.stdout.readline().split()
            assert alive(int(pid))
            client.kill()
        assert wait_until(lambda: not alive(int(pid)) and not Path(folder).parent.exists())
        assert alive(survivor.seen["pid"])
        other.cancel("holder")
        survivor.join()


def test_a_server_that_is_not_there_or_not_ours_is_not_used(socket_path: str, tmp_path: Path) -> None:
    def server(path: str | Path) -> int:
        with Launcher(1, shared=path) as launcher:
            answer = launcher.run(os.getppid, label="x")
            assert launcher._server is None or launcher._server.pid == answer
            return answer

    shared = server(socket_path)
    assert server(tmp_path / "nothing" / "socket") != shared
    folder = Path(socket_path).parent
    folder.chmod(0o750)
    assert server(socket_path) != shared
    folder.chmod(0o700)
    assert server(socket_path) == shared
    identity = folder / "identity.json"
    identity.write_text('"of other code"')
    assert server(socket_path) != shared


def test_a_server_that_cannot_import_is_stood_in_for() -> None:
    with (
        serve(preload=("no_such_module_at_all",)) as environment,
        Launcher(1, shared=environment[VARIABLE]) as launcher,
    ):
        answer = launcher.run(os.getppid, label="x")
        assert launcher._server is not None and launcher._server.pid == answer


def test_a_server_that_is_killed_is_stood_in_for(socket_path: str) -> None:
    with Launcher(2, shared=socket_path) as launcher:
        holder = Holder(launcher)
        os.kill(holder.seen["server"], signal.SIGKILL)
        assert holder.join() == "holder: the fork server has ended."
        assert wait_until(lambda: not alive(holder.seen["pid"]))
        assert launcher.run(partial(json.dumps, 1), label="after") == "1"


def test_a_server_that_is_killed_is_started_again_for_later_launchers(socket_path: str) -> None:
    with Launcher(1, shared=socket_path) as launcher:
        killed = launcher.run(os.getppid, label="x")
        os.kill(killed, signal.SIGKILL)
        assert wait_until(lambda: not alive(killed))
    with Launcher(1, shared=socket_path) as launcher:  # which connects before the next server is there
        assert launcher.run(os.getppid, label="x") != killed
        assert launcher._server is None


def test_nothing_is_left_after_the_block() -> None:
    with serve(preload=()) as environment:
        folder = Path(environment[VARIABLE]).parent
        assert folder.stat().st_mode & 0o077 == 0
        with Launcher(1, shared=environment[VARIABLE]) as launcher:
            server = launcher.run(os.getppid, label="x")
    assert not folder.exists() and not alive(server)


WORKER = """
import os
from photon_core.jobs.sharing import serve_beside
print(*serve_beside(()).values(), flush=True)
os.execvp("sleep", ["sleep", "300"])
"""


def test_a_server_beside_a_program_outlives_it_by_its_last_launcher() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, cwd=ROOT) as worker:
        assert worker.stdout is not None
        path = Path(worker.stdout.readline().strip())
        assert wait_until(lambda: Path(f"/proc/{worker.pid}/comm").read_text() == "sleep\n")
        with Launcher(1, shared=path) as launcher:
            holder = Holder(launcher)
            worker.kill()
            worker.wait()
            time.sleep(0.2)
            assert alive(holder.seen["pid"])
            launcher.cancel("holder")
            holder.join()
            assert launcher.run(os.getppid, label="x") == holder.seen["server"]
        assert wait_until(lambda: not alive(holder.seen["server"]) and not path.parent.exists())


def test_a_server_that_ends_before_it_has_read_all_is_still_heard() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(b"a job")
        theirs.send(b"cannot import")
        theirs.close()
        assert [next_message(ours), next_message(ours)] == [b"cannot import", b""]
