"""Nothing that Photon starts calls home: what a user starts, in a network that records every attempt."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from photon_cli.demo import write_demo
from photon_cli.prefect.embedded import prefect_home
from photon_core.jobs.telemetry import OFF
from photon_core.run.run import run_of
from schemas.reading.load import load_federation
from tests.conftest import prepare_file, write_file
from tests.database import give_database
from tests.flows.deployment import eventually
from tests.recorder import Recorder, recorder
from tests.terminal import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a separate network"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not installed: sudo make network"),
]
BIN = Path(sys.executable).parent
APART = ("PREFECT_", "PHOTON_", "AWS_", "CI", "GITHUB_", "HTTP", "http", "ALL_PROXY", "all_proxy", *OFF)


@pytest.fixture
def network() -> Iterator[Recorder]:
    with recorder() as network:
        yield network


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody new, who has switched nothing off; in CI itself Prefect would keep quiet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(APART)}
    return {**kept, "HOME": str(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def test_the_recorder_catches_who_calls_home(network: Recorder, user: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import contextlib, socket, urllib.request\n"
        "with contextlib.suppress(OSError): urllib.request.urlopen('http://home.example.org/usage', timeout=0.1)\n"
        "with contextlib.suppress(OSError): socket.create_connection(('2001:db8::1', 443), timeout=0.1)\n"
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'usage', ('203.0.113.1', 8125))\n"
        "with socket.create_server(('127.0.0.1', 0)) as own: socket.create_connection(own.getsockname())\n"
    )
    subprocess.run(network.inside(tmp_path, sys.executable, "-c", code), env=user, check=True)
    tries = {"lookup of home.example.org", "TCP to 198.18.0.9 port 80", "TCP to 2001:db8::1 port 443",
             "UDP to 203.0.113.1 port 8125"}  # fmt: skip
    assert eventually(lambda: set(network.recorded()) if len(network.recorded()) >= 4 else None, "four") == tries


def test_the_same_server_without_the_settings_is_caught(
    network: Recorder, user: dict[str, str], tmp_path: Path
) -> None:
    env = {**user, "PREFECT_HOME": str(give_database(tmp_path / "prefect"))}
    with started(network, [sys.executable, "-m", "photon_cli.prefect.server"], env, tmp_path / "server.log"):
        eventually(lambda: "lookup of sens-o-matic.prefect.io" in network.recorded(), "it calls home")


def test_the_demos_first_round(network: Recorder, user: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "photon-demo"
    write_demo(folder, 1)
    file = folder / "federation.yaml"
    file.write_text(file.read_text().replace("  steps: 60", "  steps: 2"))
    give_database(prefect_home(file))
    with Terminal(network.inside(tmp_path, BIN / "photon", "demo", "--rounds", "1"), user) as terminal:
        assert terminal.ended(600) == 0, terminal.said
    assert run_of(load_federation(file)).latest() == 1
    assert network.recorded() == []


def test_a_server_and_a_deployed_round(network: Recorder, user: dict[str, str], tmp_path: Path) -> None:
    file = write_file(tmp_path / "fed", ("a",), run="home")
    federation = prepare_file(file)
    home = give_database(tmp_path / "prefect")
    env = {**user, "PREFECT_HOME": str(home), "PREFECT_API_URL": "http://127.0.0.1:4200/api"}

    def photon(*arguments: str) -> None:
        done = subprocess.run(
            network.inside(file.parent, BIN / "photon", *arguments), env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    with ExitStack() as running:
        running.enter_context(started(network, [BIN / "photon", "server"], env, tmp_path / "server.log"))
        eventually(lambda: "4200" in (tmp_path / "server.log").read_text(), "the server starts")
        photon("deploy", "federation.yaml")
        for who in (["--coordinator"], ["--site", "a"]):
            log = tmp_path / f"{who[0]}.log"
            command = [BIN / "photon", "join", file, *who]
            running.enter_context(started(network, command, env, log))
        run = [BIN / "prefect", "deployment", "run", "federated-round/home"]
        subprocess.run(network.inside(tmp_path, *run), env=env, check=True, capture_output=True)
        eventually(lambda: run_of(federation).round(1), "round 1 is committed", every=0.5)
    assert network.recorded() == []


@contextmanager
def started(network: Recorder, command: list[str | Path], env: dict[str, str], log: Path) -> Iterator[None]:
    """A command in the network, until the end of the block; then it must end in an orderly way."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            network.inside(log.parent, *command), env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
