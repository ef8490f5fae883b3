"""A Prefect database with all its tables and nothing in them, made once and copied: migrations take seconds."""

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from photon_core.jobs.telemetry import OFF

MADE = Path(__file__).parents[1] / "build" / f"prefect-{version('prefect')}-{version('sqlalchemy')}.db"


def give_database(home: Path) -> Path:
    """Put one where a Prefect server that is about to start with this home, new or not, will look for its own.

    Returns:
        the home.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "prefect.db").exists():
        shutil.copyfile(_made(), home / "prefect.db")
    return home


def _made() -> Path:
    """The one that is copied; of several processes that want it first, one makes it."""
    MADE.parent.mkdir(exist_ok=True)
    with MADE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not MADE.exists():
            home = MADE.with_suffix(".home")
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            subprocess.run(
                [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
                env={**_nobodys(), **OFF, "PREFECT_HOME": str(home)}, check=True, capture_output=True, timeout=300,
            )  # fmt: skip
            (home / "prefect.db").replace(MADE)
            shutil.rmtree(home)
    return MADE


def _nobodys() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
