"""A flow run's runtime: its own log, and the process's children, which end with their block."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from photon_core.errors import Cancelled
from photon_core.evidence.events import Event, Kind
from photon_core.jobs.sharing import VARIABLE, serve
from schemas.reading.load import load_federation
from tasks.runtime import runtime, runtime_of


def test_children_come_from_the_server_beside_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve(preload=("json",)) as environment:
        monkeypatch.setenv(VARIABLE, environment[VARIABLE])
        with runtime() as process:
            assert process.launcher.run(partial(json.dumps, 1), label="x") == "1"
            assert process.launcher._server is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with runtime() as process:
        assert process.launcher._shared == tmp_path / "gone"  # and is looked for when a child is first wanted


def test_flow_runs_of_a_block_share_its_children_and_listeners_and_not_their_logs(
    write_federation: Callable[..., Path],
) -> None:
    federation, heard = load_federation(write_federation()), list[Event]()
    with runtime(heard.append) as process:
        with runtime_of(federation) as outer, runtime_of(federation, "site:a") as inner:
            assert outer.launcher is inner.launcher is process.launcher
            for number, log in enumerate((outer.log, inner.log)):
                log.append(Kind.UPDATE_COMMITTED, bytes=number)
            assert [event.actor for event in outer.log.events()] == ["coordinator"]
        assert [event.data for event in heard] == [{"bytes": 0}, {"bytes": 1}]
        process.launcher.warm()
    with runtime_of(federation) as alone:
        assert alone.launcher is not process.launcher
    for ended in (process, alone):
        with pytest.raises(Cancelled, match="shut down"):
            ended.launcher.warm()
