"""A server that others can reach does not start without a password, wherever its address comes from."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from photon_cli.prefect.exposure import check_exposure

PHOTON = Path(sys.executable).parent / "photon"
PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
@pytest.mark.parametrize("auth", [None, "", "photon:words"])
def test_this_machine_alone_needs_no_password(host: str, auth: str | None) -> None:
    assert not check_exposure(host, auth)


OTHERS = ["", "0.0.0.0", "0", "::", "::0", "::ffff:0.0.0.0", "::ffff:10.0.0.1", "10.0.0.1", "fe80::1%eth0",
          "example.org", "localhost.example.org", "127.0.0.1.example.org", "127.1", " 127.0.0.1"]  # fmt: skip


@pytest.mark.parametrize("host", OTHERS)
def test_every_other_address_needs_one(host: str) -> None:
    assert not check_exposure(host, "photon:words")
    for auth in (None, "", " ", "photon", "photon:", "photon: "):
        problem = check_exposure(host, auth)
        assert f"listen on {host or 'every address'}" in problem and f"export {PASSWORD}=" in problem


def server(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """photon server, which must end by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with socket.create_server(("127.0.0.1", 0)) as taken:  # if it continued after all, it would end here
        place = ["--port", str(taken.getsockname()[1])]
        return subprocess.run(
            [PHOTON, "server", *arguments, *place], env={**kept, "PREFECT_HOME": str(folder), **environment},
            cwd=folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--host", "0.0.0.0"], {}),
        (["--host=::", "--background"], {PASSWORD: "photon:"}),
        (["--host", ""], {}),
        ([], {"PREFECT_SERVER_API_HOST": "0.0.0.0", PASSWORD: ""}),
        (["--profile", "open"], {}),
    ],
)
def test_photon_server_refuses(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    profiles = 'active = "here"\n[profiles.here]\n[profiles.open]\nPREFECT_SERVER_API_HOST = "0.0.0.0"\n'
    (tmp_path / "profiles.toml").write_text(profiles)
    done = server(tmp_path, *arguments, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("photon: the server would listen on ") and not done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profiles.toml"]


@pytest.mark.slow
def test_photon_server_goes_on_with_a_password(tmp_path: Path) -> None:
    done = server(tmp_path, "--host", "0.0.0.0", **{PASSWORD: "photon:words"})
    assert done.returncode == 1 and "is already in use" in done.stderr + done.stdout
