"""Flower's simulation, in its own environment, which is made from pinned requirements at the first use."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, say

ENVIRONMENT = ROOT / "benchmarks" / ".peer-venv"
REQUIREMENTS = Path(__file__).with_name("flower-requirements.txt")
SCRIPT = Path(__file__).with_name("flower_rounds.py")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "1"}
LIMIT = 600.0


class PeerMissing(Exception):
    """The peer's environment cannot be made on this machine, for instance offline."""


def environment() -> Path:
    """The Python of Flower's environment.

    Raises:
        PeerMissing: the environment does not exist and cannot be made; the message has the reason.
    """
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "requirements.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    say("making Flower's environment")
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)],
        [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), "-r", str(REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerMissing(f"Flower's environment cannot be made: {done.stderr.strip().splitlines()[-1:]}")
    stamp.write_bytes(REQUIREMENTS.read_bytes())
    return python


def flower_rounds(clients: int, parameters: int, rounds: int) -> dict[str, Any]:
    """Seconds from the process's start to the end of the first round, and of a later round (median).

    Raises:
        PeerMissing: the environment is missing (see `environment`), or Flower itself failed.
    """
    command = [str(environment()), str(SCRIPT), str(clients), str(parameters), str(rounds)]
    say(f"Flower: {clients} clients, {parameters:,} parameters, {rounds} rounds")
    done = subprocess.run(
        command, env=os.environ | QUIET, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    if done.returncode:
        raise PeerMissing("Flower's simulation failed:\n" + "\n".join(done.stderr.splitlines()[-10:]))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def flower_aggregate(way: str, sites: int, shapes: Path) -> dict[str, float]:
    """Seconds, GB/s and peak memory (GiB) of FedAvg's aggregation alone.

    Args:
        way: kind of aggregation: "classic" (`aggregate`) or "records" (the newer strategies').
        sites: number of sites.
        shapes: JSON file, name -> shape.

    Raises:
        PeerMissing: the environment is missing (see `environment`), or Flower itself failed.
    """
    command = [str(environment()), str(SCRIPT.with_name("flower_aggregate.py")), way, str(sites), str(shapes)]
    done = subprocess.run(
        command, env=os.environ | QUIET, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    if done.returncode:
        raise PeerMissing(f"Flower's {way} aggregation failed: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
