"""Whatever one site puts into the store, the round names that site and continues, in bounded memory; and after 100
such rounds every later command still works. In modes that hold every pair of float32 or bfloat16, averaged moments
or none, flat or by regions, a local disk or S3."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.photon_core.hostile_cases import CASES
from tests.photon_core.hostile_updates import MODES, cases_of, settings

ROOT = Path(__file__).parents[2]
MEMORY = 64.0  # MiB beyond the same round without a hostile site
PHOTON = (  # as a user that is not root: what it may not read, it does not
    sys.executable,
    "-c",
    "from tests.photon_core.hostile_updates import obey_permissions\n"
    "from photon_cli.main import main\n"
    "obey_permissions()\nmain()",
)
LATER = {
    "status": ["status"],
    "status --json": ["status", "--json"],
    "plan": ["plan"],
    "run": ["run"],
    "gc": ["gc", "--dry-run"],
    "report": ["report", "--to", "page.html", "-q"],
}
IN_MODES = [pytest.param(mode, marks=[pytest.mark.slow] * MODES[mode].remote) for mode in MODES]


class Played(NamedTuple):
    """A mode's rounds: what became of each case, and the folder of their federation.yaml."""

    outcomes: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    played: dict[str, Played] = {}

    def once(name: str) -> Played:
        if name not in played:
            mode, folder = MODES[name], tmp_path_factory.mktemp("hostile")
            store, storage = str(folder / "store"), {}
            if mode.remote:
                import s3fs

                bucket = f"hostile-{len(played)}"
                storage = {"endpoint_url": request.getfixturevalue("s3_endpoint")}
                s3fs.S3FileSystem(**storage).mkdir(bucket)
                store = f"s3://{bucket}/x"
            else:
                Path(store).mkdir()
            count = len(cases_of(name)) + 2
            (folder / "federation.yaml").write_text(json.dumps(settings(mode, store, count, **storage)))
            played[name] = Played(outcomes(name, store, *storage.values()), folder)
        return played[name]

    return once


def outcomes(*arguments: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.photon_core.hostile_updates", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (list(found)[-1:], done.stderr[-3000:])
    return found


@pytest.mark.parametrize("mode", IN_MODES)
def test_the_round_names_the_site_and_goes_on(play: Any, mode: str) -> None:
    found = play(mode).outcomes
    assert list(found) == ["honest", "wild", *cases_of(mode)]
    assert found["wild"]["sites"] == ["a", "b", "c"], found["wild"]["left_out"]
    for case, (_, reason) in cases_of(mode).items():
        outcome = found[case]
        assert outcome["sites"] == ["a", "c"], case
        assert set(outcome["left_out"]) == {"b"}, case
        why = outcome["left_out"]["b"]
        assert reason in why, case
        assert why.isprintable() and len(why) <= 1000, case
        assert outcome["same"], f"{case}: the hostile update changed the model"
        assert outcome["mib"] < MEMORY, case


@pytest.mark.parametrize("mode", IN_MODES)
def test_every_later_command_still_works(play: Any, mode: str) -> None:
    """Every round is logged to the trackers where it is committed: tests/photon_core/hostile_updates.py."""
    folder, said = play(mode).folder, {}
    for name, arguments in LATER.items():
        command = [*PHOTON, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (name, done.stderr[-2000:])
        said[name] = done.stdout
    rounds = len(cases_of(mode)) + 2
    assert json.loads(said["status --json"])["committed"] == rounds
    if "markup" in cases_of(mode):
        assert "[/x]" in said["status"], "untrusted text is shown unchanged"
    assert f"all {rounds} rounds are committed" in said["run"]
    assert "excluded" in (folder / "page.html").read_text()


def test_every_case_meets_a_disk_and_s3() -> None:
    met = [case for name, mode in MODES.items() if mode.remote for case in cases_of(name)]
    assert sorted(met) == sorted(CASES)
