"""Commits on a local disk: 32 processes race, and a process dies between any two of its writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.run.run import Run
from photon_core.store.store import Store

WORKERS = Path(__file__).parent / "commit_workers.py"
ROOT = Path(__file__).parents[2]


def run_workers(*args: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKERS), *args]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_one_of_32_racing_processes_commits_each_of_50_rounds(tmp_path: Path) -> None:
    found = run_workers("race", str(tmp_path), "32", "50")
    assert found["codes"] == [0] * 32
    run = Run(Store(str(tmp_path)), "run")
    assert run.latest() == 49
    for t, winners in enumerate(found["winners"]):
        assert len(winners) == 1, f"round {t} was won by {winners}"
        manifest = run.round(t)
        assert manifest is not None
        assert manifest.left_out == {f"site{winners[0]}": f"{winners[0]:02d}" * 5000}
        assert [p.name for p in (tmp_path / run.round_dir(t)).iterdir()] == ["round.json"]


def test_a_kill_between_any_two_writes_leaves_the_store_as_before(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    theta = {"w": np.arange(6, dtype=np.float32)}
    make_run(Store(str(tmp_path)), theta, {"site": ({"w": theta["w"] + 1}, 10)})
    seen = run_workers("kills", str(tmp_path))
    assert len(seen) > 20  # the calls that change the disk
    deaths, (code, latest, model) = seen[:-1], seen[-1]
    assert all(death[0] == -9 for death in deaths)
    assert {tuple(death[1:]) for death in deaths} <= {(0, ""), (1, model)}
    # a death after the link finds the round committed; the last attempt then steps back
    assert (code, latest) == ((3, 1) if deaths[-1][1] == 1 else (0, 1))
