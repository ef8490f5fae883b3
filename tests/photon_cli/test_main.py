"""The command as a user has it: light, clear about mistakes, clean when interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from photon_cli.prefect.embedded import prefect_home
from tests.database import give_database
from tests.processes import alive, wait_until
from tests.shared_memory import left_behind

PHOTON = Path(sys.executable).parent / "photon"
HEAVY = ("torch", "prefect", "composer", "streaming", "great_expectations", "pandas", "transformers", "pyarrow")


def photon(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [PHOTON, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    """A user's: without what the other tests of this session have set up."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PHOTON_"))}


def test_version():
    assert photon("--version").stdout.strip() == f"photon {version('photon-prefect')}"


def test_help_lists_the_commands():
    text = photon("--help").stdout
    assert all(command in text for command in ("demo", "prepare", "run", "status"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], write_federation: Callable[..., Path]):
    if arguments == ["status"]:
        arguments = ["status", str(write_federation())]
    code = (
        "import sys, atexit; sys.argv = ['photon', *sys.argv[1:]]\n"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from photon_cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200)
    assert "HEAVY []" in done.stderr


def test_status_before_the_first_run(write_federation: Callable[..., Path]):
    file = write_federation()
    assert "no rounds in" in photon("status", file).stdout
    facts = json.loads(photon("status", file, "--json").stdout)
    assert (facts["committed"], facts["count"]) == (None, 2)


def test_wrong_use_is_one_line_and_code_2(write_federation: Callable[..., Path]):
    file = write_federation()
    file.write_text(file.read_text().replace("rounds:", "ronds:"))
    done = photon("run", file)
    assert done.returncode == 2
    assert "did you mean 'rounds'" in done.stderr and "Traceback" not in done.stderr


def test_run_before_prepare_says_what_to_do(write_federation: Callable[..., Path]):
    file = write_federation()
    done = photon("run", file)
    assert done.returncode == 1
    assert f"not prepared yet: a, b. Write: photon prepare {file}" in done.stderr


def test_prepare_of_an_unknown_site(write_federation: Callable[..., Path]):
    done = photon("prepare", write_federation(), "--site", "zebra")
    assert done.returncode == 2
    assert "zebra" in done.stderr and "a, b" in done.stderr


@pytest.mark.slow
def test_killed_and_interrupted_run_leaves_nothing_and_continues(write_federation: Callable[..., Path]):
    file = write_federation(rounds={"count": 2}, local={"steps": 1500})
    give_database(prefect_home(file))
    assert photon("prepare", file).returncode == 0
    for stop, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = set(Path("/dev/shm").iterdir())
        process = subprocess.Popen(
            [PHOTON, "run", file], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment()
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "train" in line and "loss" in line:
                break
        marked = family(file)
        # who kills has the command's number at hand; Ctrl-C goes to all processes of the terminal
        (os.kill if stop == signal.SIGKILL else os.killpg)(process.pid, stop)
        assert process.wait(200) == code
        process.stdout.close()
        assert wait_until(lambda marked=marked: not any(map(alive, marked)), 60)
        assert not left_behind(before)

    file.write_text(file.read_text().replace("steps: 1500", "steps: 3"))
    again = photon("rerun", file, "--round", "1", "--site", "a", timeout=240)
    assert "a: attempt 1 for round 1 is committed" in again.stdout, again.stderr
    done = photon("run", file, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(photon("status", file, "--json").stdout)["committed"] == 2


@pytest.mark.slow
def test_a_run_whose_server_is_killed_goes_on_and_ends(write_federation: Callable[..., Path]):
    """kill -9 of the Prefect server that `photon run` has started: the command starts it again, on its address."""
    file = write_federation(rounds={"count": 1}, local={"steps": 800})
    prepared = photon("prepare", file)
    assert prepared.returncode == 0
    assert re.search(
        r"^a: write in the federation file, at this site: data_tokens: [1-9]\d*$", prepared.stdout, re.MULTILINE
    )
    give_database(prefect_home(file))
    process = subprocess.Popen(
        [PHOTON, "run", file], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment()
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "train" in line and "loss" in line:
            break
    os.kill(server_of(process.pid), signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait(60) == 0, rest
    assert json.loads(photon("status", file, "--json").stdout)["committed"] == 1


def server_of(command: int) -> int:
    """The Prefect server that a command has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == command and "photon_cli.prefect.server" in (entry / "cmdline").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"process {command} has no Prefect server")


def family(file: Path) -> list[int]:
    """Every process but this one that has the federation's folder among its open files or arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                links = [str(link.readlink()) for link in (process / "fd").iterdir()]
                text = (process / "cmdline").read_text()
            except OSError:
                continue
            if str(file.parent) in text or any(str(file.parent) in link for link in links):
                found.append(int(process.name))
    assert len(found) >= 3  # the command, its server, a child that trains
    return found


def test_the_shell_completes_sites_from_the_file(write_federation: Callable[..., Path]):
    file = write_federation(("berlin", "bern", "turin"))
    words = {
        "COMP_WORDS": f"photon prepare {file} --site be",
        "COMP_CWORD": "4",
        "_PHOTON_COMPLETE": "complete_bash",
    }
    done = subprocess.run([PHOTON], capture_output=True, text=True, timeout=200, env=environment() | words)
    assert done.stdout.split() == ["berlin", "bern"]


def test_exit_codes_are_in_the_help():
    assert "130 interrupted" in " ".join(photon("--help").stdout.split())
