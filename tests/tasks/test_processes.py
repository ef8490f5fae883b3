"""This process's launcher: from the fork server beside the worker if there is one, else from one of its own."""

import json
from functools import partial
from pathlib import Path

import pytest

from photon_core.jobs.sharing import VARIABLE, serve
from tasks.processes import launcher, shutdown


def test_children_come_from_the_server_beside_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve(preload=("json",)) as environment:
        monkeypatch.setenv(VARIABLE, environment[VARIABLE])
        try:
            assert launcher().run(partial(json.dumps, 1), label="x") == "1"
            assert launcher()._server is None
        finally:
            shutdown()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    try:
        assert launcher()._shared == tmp_path / "gone"  # and is looked for when a child is first wanted
    finally:
        shutdown()
