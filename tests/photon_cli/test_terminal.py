"""What a person sees at a terminal: one screen that is refreshed, colours, Ctrl-C, Tab; and scripts none of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from photon_cli.prefect.embedded import prefect_home
from photon_core.run.run import run_of
from schemas.reading.load import load_federation
from tests.database import give_database
from tests.photon_cli.conftest import round_manifest
from tests.terminal import COLOUR, Terminal

PHOTON = Path(sys.executable).parent / "photon"


def environment(**more: str) -> dict[str, str]:
    """A user's: without what the other tests of this session have set up, or what colours its output."""
    apart = ("PREFECT_", "PHOTON_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "_TYPER")
    return {name: value for name, value in os.environ.items() if not name.startswith(apart)} | more


def test_watching_is_one_screen_that_is_refreshed_until_ctrl_c(committed: Callable[..., Path]):
    file = committed(1, rounds={"count": 3})
    federation = load_federation(file)
    run = run_of(federation)
    with Terminal([PHOTON, "status", file, "--watch"], environment()) as terminal:
        terminal.until("1 of 3 rounds", "\na ", "\nb ", "no")
        run.commit_round(round_manifest(federation, 2, 20.0, run.round_sha256(1)))
        shown = terminal.until("2 of 3 rounds", "\na ", "\nb ", "no")
        terminal.keys("\x03")
        code = terminal.ended()
        after = terminal.screen()
    assert code == 130
    assert len([line for line in shown if "of 3 rounds" in line]) == 1, "what was there before is overwritten"
    assert [line.split()[:2] for line in shown if line.startswith(("a ", "b "))] == [["a", "no"], ["b", "no"]]
    assert after[-1].strip() == "photon: interrupted. To continue from here, run the same command again"
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l"), "the cursor is back"


def test_watching_ends_with_the_last_round(committed: Callable[..., Path]):
    with Terminal([PHOTON, "status", committed(2, rounds={"count": 2}), "--watch"], environment()) as terminal:
        assert terminal.ended() == 0
        assert len([line for line in terminal.screen() if "2 of 2 rounds" in line]) == 1


def test_colours_are_for_terminals_that_want_them(committed: Callable[..., Path]):
    file = committed(1, rounds={"count": 1})
    run = run_of(load_federation(file))
    bad = run.round(1)
    assert bad is not None
    path = Path(run.store.url) / run.run / "rounds/000001/round.json"
    path.write_text(bad.model_copy(update={"left_out": {"b": "late"}}).model_dump_json())  # a red row
    with Terminal([PHOTON, "status", file], environment()) as terminal:
        assert terminal.ended() == 0
        assert COLOUR.search(terminal.said)
    with Terminal([PHOTON, "status", file], environment(NO_COLOR="1")) as terminal:
        assert terminal.ended() == 0
        assert not COLOUR.search(terminal.said) and "late" in terminal.said
    piped = subprocess.run(
        [PHOTON, "status", file], capture_output=True, text=True, timeout=200, env=environment()
    )
    assert "\x1b" not in piped.stdout and "late" in piped.stdout


@pytest.mark.slow
def test_progress_is_a_bar_that_goes_away_a_line_in_scripts_nothing_when_quiet(committed: Callable[..., Path]):
    file = committed(1, rounds={"count": 1})
    to = file.parent / "page.html"
    with Terminal([PHOTON, "report", file, "--to", to], environment()) as terminal:
        assert terminal.ended() == 0
        assert "drawing" in terminal.said
        shown = " ".join(" ".join(terminal.screen()).split())  # one line, which may be wrapped
        assert "open it in a browser" in shown and "drawing" not in shown
    with Terminal([PHOTON, "report", file, "--to", to, "--quiet"], environment()) as terminal:
        assert terminal.ended() == 0
        assert terminal.screen() == []


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completes_in_a_real_shell(shell: str, write_federation: Callable[..., Path], tmp_path: Path):
    """As a user has it: --install-completion in that shell, a new one, and the Tab key."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    file = write_federation(("berlin", "turin"))
    home = tmp_path / "home"
    home.mkdir()
    (home / ".zshrc").touch()
    env = environment(HOME=str(home), PATH=f"{PHOTON.parent}:{os.environ['PATH']}", PS1="$ ")
    with Terminal([shell, "-i"], env, file.parent) as terminal:
        terminal.keys("photon --install-completion\n")
        terminal.until("completion installed")
    with Terminal([shell, "-i"], env, file.parent) as terminal:
        terminal.keys("photon prep\t")
        terminal.until("photon prepare")
        terminal.keys("--site tu\t")
        terminal.until("--site turin")


@pytest.mark.slow
def test_exit_codes_of_a_missed_quorum_and_of_another_coordinator(write_federation: Callable[..., Path]):
    file = write_federation(rounds={"count": 1, "deadline": 0.5}, local={"steps": 400})
    give_database(prefect_home(file))
    assert subprocess.run([PHOTON, "prepare", file, "-q"], timeout=240, env=environment()).returncode == 0
    done = subprocess.run([PHOTON, "run", file], capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 3
    assert "0 of 2 sampled sites have a usable update, the quorum is 2" in done.stderr

    file.write_text(file.read_text().replace("deadline: 0.5", "deadline: 600").replace("steps: 400", "steps: 60"))
    federation = load_federation(file)
    run = run_of(federation)
    process = subprocess.Popen(
        [PHOTON, "run", file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "train" in line and "loss" in line:
            break
    run.commit_round(round_manifest(federation, 1, 20.0, run.round_sha256(0)))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 4, errors
    assert "rounds/000001/round.json already exists (written by" in errors and "Traceback" not in errors
    status = subprocess.run([PHOTON, "status", file, "--json"], capture_output=True, text=True, env=environment())
    assert json.loads(status.stdout)["committed"] == 1
