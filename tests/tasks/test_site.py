"""A site's steps report to the Prefect server as a courtesy: the work does not depend on it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.deployment import Server

pytestmark = pytest.mark.slow

REPORTS = """
import logging, os, signal, sys
from prefect.logging import disable_run_logger
from photon_core.evidence.events import Log
from tasks import site

with disable_run_logger():
    progress = site._Progress(Log("tiny").at(1, "a"), 4, early=None)
progress.logger = logging.getLogger("progress")
progress.logger.addHandler(logging.StreamHandler())
for step in range(1, 5):
    progress.sent -= site.REPORT_SECONDS
    progress({"step": step, "loss": 1.0, "tokens_per_second": 1.0})
    if step == 1:
        assert progress.artifact is not None
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""


def test_a_training_goes_on_while_the_server_is_away(tmp_path: Path) -> None:
    """In a separate process, whose client does not retry."""
    server = Server(tmp_path / "server")
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", REPORTS, str(server.pid)],
            env=server.environment() | {"PREFECT_CLIENT_MAX_RETRIES": "0"}, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not accept progress; training continues") == 1
