"""Whatever one site puts into the store, it is refused by name, in bounded memory, and the round goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.photon_core.hostile_updates import CASES, ON_DISK

ROOT = Path(__file__).parents[2]
MEMORY = 64.0  # MiB beyond the same round without a hostile site
Outcomes = dict[str, dict[str, Any]]


def outcomes(*arguments: str) -> Outcomes:
    command = [sys.executable, "-m", "tests.photon_core.hostile_updates", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (list(found)[-1:], done.stderr[-3000:])
    return found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes(str(tmp_path_factory.mktemp("hostile")))


@pytest.fixture(scope="module")
def on_s3(s3_endpoint: str) -> Outcomes:
    import s3fs

    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir("hostile")
    return outcomes("s3://hostile/x", s3_endpoint)


@pytest.mark.parametrize("case", [*CASES, *ON_DISK])
def test_refused_by_name_on_a_disk(on_disk: Outcomes, case: str) -> None:
    check(on_disk, case, (CASES | ON_DISK)[case][1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_refused_by_name_on_s3(on_s3: Outcomes, case: str) -> None:
    check(on_s3, case, CASES[case][1])


def check(found: Outcomes, case: str, reason: str) -> None:
    outcome, honest = found[case], found["honest"]
    assert "error" not in outcome
    assert outcome["sites"] == ["a", "c"]
    assert set(outcome["left_out"]) == {"b"}
    assert reason in outcome["left_out"]["b"]
    assert outcome["left_out"]["b"].isprintable()
    assert len(outcome["left_out"]["b"]) <= 1000
    assert outcome["model"] == honest["model"]
    assert outcome["mib"] < MEMORY
