"""A federation whose store and text are on S3, over real HTTP: the same model as on a disk, outages or not."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_core.rounds import history, run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tests.s3_server import SECRETS, FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def run(federation: Federation, rounds: int | None = None) -> list[RoundManifest]:
    from flows.federated_run import federated_run

    federated_run(federation, rounds)
    return history(run_of(federation))


def on_s3(file: Path, bucket: str, endpoint: str) -> Federation:
    """The federation of a file, moved: its store and its text are in a bucket, its private state stays here."""
    import s3fs

    from photon_core.data.prepare import prepare_site
    from schemas.load import load_federation

    data = yaml.safe_load(file.read_text())
    data |= {"store": f"s3://{bucket}/x", "storage": {"endpoint_url": endpoint}}
    for site in data["sites"]:
        text = site["streams"][0]["source"]
        s3fs.S3FileSystem(endpoint_url=endpoint).put_file(str(file.parent / text), f"{bucket}/{text}")
        site |= {
            "state_dir": f"remote/{site['name']}",
            "streams": [{"name": "text", "source": f"s3://{bucket}/{text}"}],
        }
    moved = file.with_name("moved.yaml")
    moved.write_text(yaml.safe_dump(data))
    federation = load_federation(moved)
    for site in federation.sites:
        prepare_site(federation, site.name)
    return federation


def test_s3_gives_the_same_model_keeps_secrets_and_sites_to_their_places(
    prepared: Callable[..., Federation],
    write_federation: Callable[..., Path],
    s3_bucket: str,
    s3_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = run(prepared())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_proxy.url)  # what the text is read with
    federation = on_s3(write_federation(folder="there"), s3_bucket, s3_proxy.url)

    caplog.set_level(logging.DEBUG)
    caplog.handler.setLevel(logging.INFO)
    assert run(federation, rounds=1)[-1].model_sha256 == here[1].model_sha256
    s3_proxy.requests.clear()
    site_alone(federation, "a", 2)
    check_writes(s3_proxy, f"/{s3_bucket}/x/tiny/rounds/000002/sites/a/")

    s3_proxy.away_for(6.0)
    there = run(federation)
    assert len(s3_proxy.broken) >= 4
    assert [r.model_sha256 for r in there] == [r.model_sha256 for r in here]
    assert not any(r.left_out for r in there)

    check_secrets(federation, caplog.text + "".join(capfd.readouterr()))


def site_alone(federation: Federation, site: str, t: int) -> None:
    """What the site's own worker does in a round: its part, and the evaluation of a candidate."""
    from prefect import flow

    from flows.outcome import failure
    from flows.site_round import site_steps
    from tasks.site import evaluate

    @flow
    def part() -> None:
        assert not failure(site_steps(federation, site, t))
        evaluate(federation, site, t, candidate_of(federation, t - 1))

    part()


def candidate_of(federation: Federation, t: int) -> Any:
    manifest = run_of(federation).round(t)
    assert manifest
    return manifest.model


def check_writes(proxy: FaultProxy, prefix: str) -> None:
    written = [request.path for request in proxy.requests if request.method not in ("GET", "HEAD")]
    assert any(path.endswith("/update.json") for path in written)
    assert any(re.search(r"/evaluation-\w+\.json$", path) for path in written)
    assert any(path.endswith(".safetensors") for path in written)
    assert [path for path in written if not path.startswith(prefix)] == []


def check_secrets(federation: Federation, output: str) -> None:
    """Neither what was printed and logged nor anything the server or the store keeps holds the credentials."""
    import anyio
    from prefect.client.orchestration import get_client

    async def kept() -> list[str]:
        async with get_client() as client:
            found = [str(r.model_dump()) for r in await client.read_flow_runs()]
            found += [str(r.model_dump()) for r in await client.read_task_runs()]
            found += [str(r.model_dump()) for r in await client.read_artifacts()]
            return found + [str(r.model_dump()) for r in await client.read_logs()]

    texts = [output, federation.model_dump_json(), *anyio.run(kept)]
    texts += [m.model_dump_json() for m in history(run_of(federation))]
    assert len(texts) > 20
    for secret in SECRETS.values():
        assert not any(secret in text for text in texts)
