"""The commands that a page of docs/ shows, taken from its fenced `sh` blocks, and how they are run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The text of every fenced sh block of a page, such as docs/failures.md, in order."""
    return FENCE.findall((ROOT / page).read_text("utf-8"))


def commands(page: str) -> list[str]:
    """Every command of the page's sh blocks, in order: a line each, continued lines joined, without comments."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := re.sub(r"(^|\s+)#.*$", "", line).strip())]


def adapted(command: str, here: Mapping[str, str]) -> str:
    """The command with the page's example names (whole words of a path, a name or an option) replaced by ours."""
    for documented, ours in here.items():
        command = re.sub(rf"(?<![\w.]){re.escape(documented)}(?![\w])", lambda _, ours=ours: ours, command)
    return command


def run(
    command: str, folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command, or a whole block, in a shell, as somebody who has activated this environment.

    Args:
        command: of a page.
        folder: where.
        environment: variables beyond this process's own.
        timeout: seconds.
    """
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=user(environment), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def start(
    command: str, folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that does not end by itself, as its process alone: a signal to it reaches the program."""
    with log.open("ab") as output:
        return subprocess.Popen(
            shlex.split(command), cwd=folder, env=user(environment),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def user(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables and these, with the environment's commands on the PATH."""
    theirs = {**os.environ, **(environment or {})}
    return {**theirs, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{theirs.get('PATH', os.defpath)}"}
