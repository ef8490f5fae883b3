"""Shared parts of the benchmarks: facts about the machine, tables for people, the last line for programs."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUSY = 0.05  # share of the cores' time above which other work has disturbed a timing


class Neighbours:
    """Share of the cores' time that went to other processes since the start (Linux)."""

    def __init__(self) -> None:
        self._at, self._all, self._ours = time.monotonic(), _all_seconds(), our_seconds()

    def share(self) -> float | None:
        """From 0 on a quiet machine to 1. Children of this process do not count once they have ended."""
        if self._all is None or (everyone := _all_seconds()) is None:
            return None
        others = everyone - self._all - (our_seconds() - self._ours)
        return max(0.0, others / (time.monotonic() - self._at) / (os.cpu_count() or 1))


def _all_seconds() -> float | None:
    """Busy seconds of all processors since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, stat.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def our_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions, commit: the context of every result."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "mosaicml": _version("mosaicml"),
        "prefect": _version("prefect"),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""),
    }


def _version(package: str) -> str:
    """Version of a package; none if it is not installed: a machine that only trains needs no Prefect."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in lines[:30] if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    name = named.get("model name", platform.processor() or platform.machine())
    model = f" (family {named['cpu family']}, model {named['model']})" if "model" in named else ""
    return name + model


def gpu_name() -> str:
    """Name of the first GPU, from a child process: this one must not initialise CUDA before its children."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    asked = [command, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def say(text: str) -> None:
    """Print a line about progress to standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def heading(title: str, at: Mapping[str, Any], others: float | None) -> None:
    """Print title and machine, above the tables. `others`: final value of Neighbours.share()."""
    print(f"\n{title}")
    print(f"{at['cpu']}, {at['cores']} cores, {at['memory_gib']} GiB; commit {at['commit']}")
    print(f"python {at['python']}, torch {at['torch']}, mosaicml {at['mosaicml']}, prefect {at['prefect']}")
    if others is not None and others > BUSY:
        print(f"DISTURBED: other work took {others:.0%} of the cores' time; do not quote these seconds")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table, with text aligned left and numbers aligned right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print()
    console.print(shown)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def finish(figures: Mapping[str, Any], at: Mapping[str, Any]) -> None:
    """Print the last line: the figures and the machine as one JSON object."""
    print(json.dumps({**figures, "machine": dict(at)}), flush=True)


def python_child(module: str, *arguments: str, log: Path) -> None:
    """Run a module in a separate process, with its output in a log.

    Raises:
        RuntimeError: the module failed; the message has the last lines of its log.
    """
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{module} ended with code {done.returncode}; the end of {log}:\n{tail}")
