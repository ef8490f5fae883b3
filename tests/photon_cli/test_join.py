"""photon deploy and photon join as an operator has them: what is missing is named, and a worker starts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_cli import join
from photon_cli.prefect.embedded import EmbeddedServer
from photon_core.errors import PhotonError
from schemas.federation import Federation
from schemas.view import view_of
from tests.database import give_database
from tests.federations import sample, site

PHOTON = Path(sys.executable).parent / "photon"
AUTH = "photon:words"


def photon(*arguments: str | Path, url: str | None, auth: str = AUTH) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PHOTON, *map(str, arguments)], env=environment(url, auth), capture_output=True, text=True, timeout=200
    )


def environment(url: str | None, auth: str = AUTH) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    given = {"PREFECT_API_URL": url} if url else {}
    return {**kept, **given, "PREFECT_API_AUTH_STRING": auth, "PREFECT_HOME": os.environ["PHOTON_TEST_HOME"]}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's settings of the commands: nobody's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTON_TEST_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a password and for CSRF tokens. Returns its API's address."""
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    os.environ.update(settings)
    with EmbeddedServer(give_database(tmp_path_factory.mktemp("guarded"))) as server:
        for name in settings:
            del os.environ[name]
        server.wait()
        yield f"{server.url}/api"


def test_neither_site_nor_coordinator(write_federation: Callable[..., Path]) -> None:
    done = photon("join", write_federation(), url=None)
    assert done.returncode == 2 and "--coordinator" in done.stderr


def test_unknown_site(write_federation: Callable[..., Path]) -> None:
    done = photon("join", write_federation(), "--site", "zebra", url=None)
    assert done.returncode == 2 and "no site is named 'zebra'; write one of: a, b" in done.stderr


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("cuda", 8, "cuda, 8 of 8 GPUs"),
        ("auto", 9, "cuda, 8 of 9 GPUs; photon join FILE --site a --measure prints what to write"),
        ("auto", 4, "sites[a].hardware: training takes 8 GPUs of one machine, and this one shows 4."),
        ("auto", 0, "no usable GPU on this machine: training uses the processors"),
        ("cuda", 0, "the file says local.device: cuda, but this machine has no usable GPU"),
        ("cpu", 0, "cpu, as the file says"),
    ],
)
def test_a_site_declares_no_more_gpus_than_its_machine_has(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(join, "GPUS", f"print({gpus})")  # what torch counts
    hardware = {"devices": 4, "nodes": 2, "parallel": "federation", "tflops": 1}
    local = {"steps": 10, "batch_size": 8, "device": device}
    try:
        said = join._device(view_of(sample(local=local, sites=[site("a", hardware=hardware)]), "a"))
    except PhotonError as error:
        said = str(error)
    assert said.startswith(expected)


@pytest.mark.parametrize(
    ("gpus", "hardware", "precision", "expected"),
    [
        (1, None, "amp_bf16", "cuda, 1 of 1 GPUs"),
        (8, None, "amp_bf16", "cuda, 1 of 8 GPUs; photon join FILE --site a --measure prints what to write"),
        (8, {"devices": 8, "tflops": 1, "parallel": "none"}, "fp32", "cuda, 1 of 8 GPUs"),
        (0, None, "amp_bf16", "the file says local.precision: amp_bf16, which needs a GPU, but this machine has"),
        (0, {"devices": 2, "tflops": 1, "parallel": "fsdp"}, "fp32", "sites[a].hardware: trains with FSDP"),
    ],
)
def test_gpus_beside_what_the_file_declares(
    monkeypatch: pytest.MonkeyPatch, gpus: int, hardware: dict[str, Any] | None, precision: str, expected: str
) -> None:
    monkeypatch.setattr(join, "GPUS", f"print({gpus})")
    local = {"steps": 10, "batch_size": 8, "precision": precision}
    federation = sample(local=local, recipe=None, sites=[site("a", hardware=hardware)])
    try:
        said = join._device(view_of(federation, "a"))
    except PhotonError as error:
        said = str(error)
    assert said.startswith(expected) and ("--measure" in said) == ("--measure" in expected)


@pytest.mark.slow
def test_no_server(write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    done = photon("deploy", file, url=None)
    assert done.returncode == 1 and "no Prefect server is named; set PREFECT_API_URL" in done.stderr
    done = photon("join", file, "--site", "a", url="http://127.0.0.1:9/api")
    assert (
        done.returncode == 1
        and "server: the Prefect server at http://127.0.0.1:9/api does not answer" in done.stderr
    )
    assert "data: not prepared yet. Write: photon prepare" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_the_password(guarded: str, write_federation: Callable[..., Path]) -> None:
    done = photon("deploy", write_federation(), url=guarded, auth="photon:guess")
    assert done.returncode == 1 and "denies access; set PREFECT_API_AUTH_STRING" in done.stderr


@pytest.mark.slow
def test_deploy_then_join(guarded: str, prepared: Callable[..., Federation], tmp_path: Path) -> None:
    prepared(("a",), run="joined")
    file = tmp_path / "fed" / "federation.yaml"
    early = photon("join", file, "--site", "a", "--check", url=guarded)
    assert early.returncode == 1 and "has no work pool 'photon-a'. Write: photon deploy FILE" in early.stderr
    would = photon("deploy", file, "--dry-run", url=guarded)
    assert "would create work pool photon-joined (process)" in would.stdout
    done = photon("deploy", file, url=guarded)
    assert done.returncode == 0 and "created deployment site-round/joined-a on photon-a" in done.stdout
    assert "unchanged deployment site-round/joined-a" in photon("deploy", file, url=guarded).stdout

    for who in (["--site", "a"], ["--coordinator"]):
        check = photon("join", file, *who, "--check", url=guarded)
        assert check.returncode == 0, check.stderr
        assert "no round yet" in check.stdout
    assert not [path for path in (tmp_path / "fed" / "store").rglob("*") if path.is_file()]  # no probe stays

    moved = tmp_path / "fed" / "moved.yaml"
    moved.write_text(file.read_text().replace("sites/a", "elsewhere/a"))
    other = photon("join", moved, "--site", "a", "--check", "--unprepared", url=guarded)
    assert other.returncode == 1 and "Write absolute paths that are valid at the site" in other.stderr

    for number, who in (
        ("protocol:7", "upgrade Photon at site 'a'"),
        ("site:a", "upgrade Photon where `photon dep"),
    ):
        respoken(guarded, "site-round/joined-a", number)
        refused = photon("join", file, "--site", "a", "--check", url=guarded)
        assert refused.returncode == 1 and who in refused.stderr
    assert photon("deploy", file, url=guarded).returncode == 0

    behind = ["bash", "-c", "trap '' INT; exec \"$@\"", "-"]  # as a script's background job ignores Ctrl-C
    with subprocess.Popen(
        [*behind, PHOTON, "join", file, "--site", "a"], env=environment(guarded), stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        limit = time.monotonic() + 120
        while "Worker 'photon-joined-a' started" not in (line := worker.stdout.readline()):
            assert line and time.monotonic() < limit, "the worker did not start"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(200) == 0


def respoken(url: str, name: str, tag: str) -> None:
    """Replace the protocol in a deployment's tags, as a Photon of another version would have written it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: AUTH}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        there = client.read_deployment_by_name(name)
        tags = [tag if known.startswith("protocol:") else known for known in there.tags]
        client.update_deployment(there.id, DeploymentUpdate(tags=tags))


@pytest.mark.slow
def test_a_rerun_before_the_deployment(guarded: str, committed: Callable[..., Path]) -> None:
    done = photon("rerun", committed(1), "--round", "2", "--site", "a", url=guarded)
    assert done.returncode == 1 and "has no deployment 'rerun-site/tiny'. Write: photon deploy FILE" in done.stderr
