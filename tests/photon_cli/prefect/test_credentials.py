"""storage.block: every command takes the store's credentials from the server's block, and leaves them nowhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from schemas.federation import Federation
from tests.s3_server import SECRETS, FaultProxy

pytestmark = pytest.mark.slow
PHOTON = Path(sys.executable).parent / "photon"
BLOCK = {"aws_access_key_id": "AKIAFROMTHEBLOCK0000", "aws_secret_access_key": "out/of+the/block"}


def photon(home: Path, *arguments: str | Path, url: str | None) -> subprocess.CompletedProcess[str]:
    """As somebody without credentials in the environment, in a profile or from the machine's role."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "PHOTON_"))}
    given = {"PREFECT_API_URL": f"{url}/api"} if url else {}
    env = {**kept, **given, "PREFECT_HOME": str(home), "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.run([PHOTON, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=250)


@pytest.fixture
def file(prepared: Callable[..., Federation], tmp_path: Path, s3_bucket: str, s3_proxy: FaultProxy) -> Path:
    """A federation whose store is on S3, with its credentials in a block."""
    prepared(("a",), run="blocks")
    path = tmp_path / "fed" / "federation.yaml"
    data = yaml.safe_load(path.read_text())
    data |= {"store": f"s3://{s3_bucket}/x", "storage": {"endpoint_url": s3_proxy.url, "block": "secret/store"}}
    path.write_text(yaml.safe_dump(data))
    return path


def test_without_a_server_or_the_block(file: Path, tmp_path: Path, prefect_server: str) -> None:
    done = photon(tmp_path, "status", file, url=None)
    assert done.returncode == 1
    assert "photon: storage.block: no Prefect server is named; set PREFECT_API_URL" in done.stderr
    done = photon(tmp_path, "status", file, url=prefect_server)
    assert done.returncode == 2 and "storage.block: the Prefect server has no block 'secret/store'" in done.stderr


def test_every_command_takes_them_and_leaves_them_nowhere(
    file: Path, tmp_path: Path, prefect_server: str, s3_proxy: FaultProxy, s3_bucket: str, s3_endpoint: str
) -> None:
    import s3fs
    from prefect.blocks.system import Secret

    Secret(value=BLOCK).save("store", overwrite=True)
    s3_proxy.requests.clear()
    ran = photon(tmp_path, "run", file, "--rounds", "1", url=prefect_server)
    assert ran.returncode == 0, ran.stderr
    said = photon(tmp_path, "status", file, url=prefect_server)
    assert said.returncode == 0 and "1 of 2 rounds" in said.stdout
    users = {
        h for r in s3_proxy.requests for h in r.headers.split("\r\n") if h.lower().startswith("authorization")
    }
    assert users and all(BLOCK["aws_access_key_id"] in user for user in users)

    there = s3fs.S3FileSystem(endpoint_url=s3_endpoint)
    kept = [
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    ]  # its server's database, logs, state
    kept += [there.cat_file(path) for path in there.find(s3_bucket)]
    texts = [ran.stdout, ran.stderr, said.stdout, said.stderr]
    for secret in (*BLOCK.values(), SECRETS["AWS_SECRET_ACCESS_KEY"]):
        assert not [text for text in texts if secret in text]
        assert not [content for content in kept if secret.encode() in content]
