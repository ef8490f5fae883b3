"""The documentation's commands are found whole, and run as written."""

from pathlib import Path

from tests.docs import commands


def test_commands_are_found_without_their_comments() -> None:
    found = commands.commands("docs/deploy.md")
    assert "photon deploy federation.yaml --dry-run" in found
    assert all("#" not in command for command in found) and len(found) >= 10


def test_names_are_replaced_whole() -> None:
    command = "photon rerun federation.yaml --round 7 --site berlin --site berlin2"
    ours = commands.adapted(command, {"federation.yaml": "/x/f.yaml", "berlin": "a", "7": "1"})
    assert ours == "photon rerun /x/f.yaml --round 1 --site a --site berlin2"


def test_a_command_runs_in_its_folder(tmp_path: Path) -> None:
    done = commands.run("photon --version && pwd && echo $WORD", tmp_path, {"WORD": "heard"})
    assert done.stdout.split()[0] == "photon" and str(tmp_path) in done.stdout and "heard" in done.stdout
