"""The launcher: results, errors, kills, deadlines, cancellation, and that nothing is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import Cancelled, ChildFailed, DataError, DeadlinePassed, UpdateRejected
from photon_core.jobs import launcher as module
from photon_core.jobs.launcher import Launcher
from photon_core.jobs.scratch import PREFIX, create_scratch, sweep_scratch
from tests.processes import alive, wait_until


def add(left: int, right: int) -> int:
    return left + right


def where() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "temporary": tempfile.gettempdir(),
        "folder": str(Path.cwd()),
        "variable": os.environ.get("PHOTON_TEST_VARIABLE"),
        "modules": sorted(sys.modules),
    }


def count(report: Callable[[dict[str, Any]], None], steps: int) -> int:
    for step in range(steps):
        report({"step": step})
    return steps


def refuse() -> None:
    raise UpdateRejected("alpha", "it is not a number")


def refuse_with_note() -> None:
    raise DataError("train/shard.00000.mds: truncated")


def stumble() -> None:
    raise ZeroDivisionError("by nothing")


def hold_memory(report: Callable[[dict[str, Any]], None], ignore: bool = False) -> None:
    if ignore:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(["sleep", "300"])
    memory = SharedMemory(create=True, size=16)
    (Path(tempfile.gettempdir()) / "leftover").write_text("x")
    report(
        {
            "pid": os.getpid(),
            "grandchild": grandchild.pid,
            "name": memory.name,
            "folder": tempfile.gettempdir(),
        }
    )
    time.sleep(300)


def leave_memory() -> str:
    return SharedMemory(create=True, size=16).name


def give_a_lock() -> Any:
    return threading.Lock()


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_off(report: Callable[[dict[str, Any]], None]) -> None:
    report({"pid": os.getpid()})
    os.closerange(3, 256)
    time.sleep(300)


def speak() -> None:
    print("a line for the log")


def nothing_left(seen: dict[str, Any]) -> bool:
    return wait_until(
        lambda: (
            not alive(seen["pid"])
            and not alive(seen["grandchild"])
            and not Path("/dev/shm", seen["name"]).exists()
            and not Path(seen["folder"]).exists()
        )
    )


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(2, preload=("json",)) as launcher:
        yield launcher


def hold(launcher: Launcher, ignore: bool = False) -> tuple[dict[str, Any], threading.Thread, list[BaseException]]:
    """Start hold_memory in a thread and wait until it runs."""
    seen: dict[str, Any] = {}
    errors: list[BaseException] = []
    ready = threading.Event()

    def report(values: dict[str, Any]) -> None:
        seen.update(values)
        ready.set()

    def body() -> None:
        try:
            launcher.run(partial(hold_memory, ignore=ignore), label="holder", on_report=report)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    assert ready.wait(200)
    return seen, thread, errors


def test_returns_the_result_and_arguments_are_bound(launcher: Launcher) -> None:
    assert launcher.run(partial(add, 1, right=2), label="add") == 3
    assert launcher.run(partial(json.dumps, [1]), label="dumps") == "[1]"


def test_child_has_its_own_session_folder_and_the_callers_environment(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHOTON_TEST_VARIABLE", "set late")
    seen = launcher.run(where, label="where")
    assert seen["pid"] == seen["group"] == seen["session"] != os.getpid()
    assert seen["folder"] == str(tmp_path)
    assert seen["variable"] == "set late"
    assert not Path(seen["temporary"]).exists()
    assert "torch" not in seen["modules"]


def test_reports_arrive_in_order(launcher: Launcher) -> None:
    seen: list[int] = []
    assert launcher.run(partial(count, steps=5), label="count", on_report=lambda r: seen.append(r["step"])) == 5
    assert seen == [0, 1, 2, 3, 4]


def test_our_errors_keep_their_type_and_others_their_text(launcher: Launcher) -> None:
    with pytest.raises(UpdateRejected, match="'alpha' rejected") as caught:
        launcher.run(refuse, label="refuse")
    assert caught.value.reason == "it is not a number"
    with pytest.raises(DataError, match="truncated"):
        launcher.run(refuse_with_note, label="refuse")
    with pytest.raises(ChildFailed, match=r"ZeroDivisionError: by nothing[\s\S]*in stumble"):
        launcher.run(stumble, label="stumble")
    with pytest.raises(ChildFailed, match=r"(?i)pickle"):
        launcher.run(give_a_lock, label="unpicklable result")


def test_a_killed_child_is_named(launcher: Launcher) -> None:
    with pytest.raises(ChildFailed, match=r"alpha / train: killed by SIGKILL \(out of memory\?\)"):
        launcher.run(kill_oneself, label="alpha / train")


def test_output_is_appended_to_the_log(launcher: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "alpha.log"
    for _ in range(2):
        launcher.run(speak, label="speak", log_path=log)
    assert log.read_text() == "a line for the log\n" * 2


def test_a_log_on_a_full_disk_hides_no_error(launcher: Launcher) -> None:
    with pytest.raises(ChildFailed, match="No space left on device"):
        launcher.run(speak, label="speak", log_path="/dev/full")
    with pytest.raises(ChildFailed, match=r"ZeroDivisionError: by nothing"):
        launcher.run(stumble, label="stumble", log_path="/dev/full")


def test_forgotten_shared_memory_is_removed(launcher: Launcher) -> None:
    name = launcher.run(leave_memory, label="leave")
    assert not Path("/dev/shm", name).exists()


def test_deadline_ends_the_whole_group(launcher: Launcher) -> None:
    seen: dict[str, Any] = {}
    for timeout in (2, 60):  # a busy machine may take longer than two seconds to start it
        if not seen:
            with pytest.raises(DeadlinePassed, match="slow: stopped at its deadline"):
                launcher.run(hold_memory, label="slow", timeout=timeout, on_report=seen.update)
    assert nothing_left(seen)


@pytest.mark.parametrize("ignore", [False, True])
def test_cancel_ends_the_child_and_its_children(launcher: Launcher, ignore: bool) -> None:
    seen, thread, errors = hold(launcher, ignore=ignore)
    assert launcher.cancel("holder") == 1
    thread.join(120)
    assert [(type(error), str(error)) for error in errors] == [(Cancelled, "holder: cancelled")]
    assert nothing_left(seen)


def test_an_error_in_on_report_ends_the_child(launcher: Launcher) -> None:
    seen: dict[str, Any] = {}

    def report(values: dict[str, Any]) -> None:
        seen.update(values)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(hold_memory, label="interrupted", on_report=report)
    assert nothing_left(seen)


def test_a_child_that_no_signal_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that hangs in the kernel, on a dead disk: here the server that passes signals on is stopped."""
    monkeypatch.setattr(module, "GRACE", 0.2)
    monkeypatch.setattr(module, "STUCK", 0.5)
    seen: dict[str, Any] = {}
    with Launcher(1) as launcher:

        def report(values: dict[str, Any]) -> None:
            seen.update(values)
            assert launcher._server is not None
            os.kill(launcher._server.pid, signal.SIGSTOP)

        with pytest.raises(ChildFailed, match=r"stuck: process \d+ did not exit after SIGKILL"):
            launcher.run(cut_off, label="stuck", on_report=report)
        assert alive(seen["pid"]) and launcher._server is not None
        os.kill(launcher._server.pid, signal.SIGCONT)
        assert wait_until(lambda: not alive(seen["pid"]))
        assert launcher.run(partial(add, 1, 1), label="next") == 2


def test_at_most_slots_children_at_once() -> None:
    with Launcher(1) as launcher:
        _seen, thread, _ = hold(launcher)
        with pytest.raises(DeadlinePassed):
            launcher.run(partial(add, 1, 1), label="waiting", timeout=0.5)
        launcher.cancel("holder")
        thread.join(120)
        assert launcher.run(partial(add, 1, 1), label="next") == 2


def test_shutdown_leaves_nothing() -> None:
    launcher = Launcher(2)
    seen, thread, errors = hold(launcher)
    scratch = Path(seen["folder"]).parent
    launcher.shutdown()
    thread.join(120)
    assert errors and isinstance(errors[0], Cancelled)
    assert nothing_left(seen)
    assert not scratch.exists()
    with pytest.raises(Cancelled, match="shut down"):
        launcher.run(partial(add, 1, 1), label="late")


def test_shutdown_while_importing_and_without_a_start() -> None:
    Launcher().shutdown()
    launcher = Launcher(preload=("torch",))
    launcher.warm()
    server = launcher._server
    launcher.shutdown()
    assert server is not None and server.returncode is not None


def test_failed_import_says_which() -> None:
    with (
        Launcher(preload=("no_such_module_at_all",)) as launcher,
        pytest.raises(ChildFailed, match="cannot import no_such_module_at_all"),
    ):
        launcher.run(partial(add, 1, 1), label="alpha / train")


def test_a_dead_server_is_replaced() -> None:
    with Launcher(1) as launcher:
        assert launcher.run(partial(add, 1, 1), label="before") == 2
        assert launcher._server is not None
        launcher._server.kill()
        assert wait_until(lambda: launcher._control is None)
        assert launcher.run(partial(add, 1, 1), label="after") == 2


PARENT = """
import sys
from photon_core.jobs.launcher import Launcher
from tests.photon_core.jobs.test_launcher import hold_memory
def show(values):
    print(values["pid"], values["grandchild"], values["name"], values["folder"], flush=True)
Launcher(1).run(hold_memory, label="x", on_report=show)
"""


def test_a_killed_parent_leaves_nothing() -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ}
    ) as parent:
        assert parent.stdout is not None
        pid, grandchild, name, folder = parent.stdout.readline().split()
        parent.kill()
    seen = {"pid": int(pid), "grandchild": int(grandchild), "name": name, "folder": folder}
    assert nothing_left(seen)
    assert wait_until(lambda: not Path(folder).parent.exists())


def test_leftovers_of_dead_launchers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, lock = create_scratch()
    ours = Path(f"/dev/shm/photon_test_{os.getpid()}_ours")
    theirs = Path(f"/dev/shm/photon_test_{os.getpid()}_theirs")
    try:
        ours.touch()
        theirs.touch()
        job = dead / "job-000001"
        job.mkdir()
        (job / "shared-memory").write_text(
            f"+ /{ours.name} {ours.stat().st_ino}\n+ /{theirs.name} {theirs.stat().st_ino + 1}\ngarbage\n"
        )
        living, living_lock = create_scratch()
        assert dead.exists() and ours.exists()
        os.close(lock)
        os.close(create_scratch()[1])
        assert not dead.exists() and living.exists()
        assert not ours.exists() and theirs.exists()
        os.close(living_lock)
    finally:
        ours.unlink(missing_ok=True)
        theirs.unlink(missing_ok=True)


def test_a_new_scratch_folder_is_never_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def create_many(_: int) -> bool:
        made = [create_scratch() for _ in range(40)]  # each begins with a sweep
        there = all(folder.exists() for folder, _ in made)
        for _, lock in made:
            os.close(lock)
        return there

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(create_many, range(8)))


def test_more_than_a_thousand_open_files_are_no_hindrance() -> None:
    with contextlib.ExitStack() as files:
        for _ in range(1100):
            files.enter_context(Path(os.devnull).open())
        with Launcher(1, preload=("json",)) as late:
            assert late.run(os.getpid, label="pid") != os.getpid()


def test_a_link_that_is_named_like_a_scratch_folder_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may put one into the machine's folder for temporary files: what it leads to stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    mine = tmp_path / "home"
    (mine / "thesis").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    for name in ("lock", "thesis/chapter.txt"):
        (mine / name).write_text("mine")
    (tmp_path / "tmp" / f"{PREFIX}{os.getuid()}-evil").symlink_to(mine)
    sweep_scratch()
    assert (mine / "thesis/chapter.txt").read_text() == "mine"
