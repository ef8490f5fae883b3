"""Every process of a federation may be killed: one kill of each kind, and the run is the same, bit for bit."""

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.common import ROOT


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", ["embedded", "deployed"])
def test_killed_processes_change_no_bit_and_train_nothing_twice(part: str) -> None:
    command = [sys.executable, "-m", "benchmarks.recovery", "--chaos", "--quick", "--only", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[part]
    assert set(found["kills"].values()) == {1}
    assert found["same_bits"]
    assert found["trained_twice"] == [] and found["left_out"] == []
