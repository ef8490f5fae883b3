"""The lock on a folder."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from photon_core.files import folder_lock


def _hold(folder: Path, ready: Any) -> None:
    with folder_lock(folder):
        ready.set()
        time.sleep(300)


def test_lock_ends_with_its_process_and_leaves_no_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_hold, args=(tmp_path, ready))
    child.start()
    assert ready.wait(120)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with folder_lock(tmp_path):
        assert list(tmp_path.iterdir()) == []


def _append(folder: Path, file: Path, n: int) -> None:
    for _ in range(20):
        with folder_lock(folder):
            content = file.read_text()
            time.sleep(0.001)
            file.write_text(content + f"{n}\n")


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_append, args=(tmp_path, file, n)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len(file.read_text().splitlines()) == 80
