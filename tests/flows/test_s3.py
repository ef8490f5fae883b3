"""A federation whose store and text are on S3, over real HTTP: the same model as on a disk, outages or not."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml

from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import view_of
from tests.s3_server import SECRETS, FaultProxy, Request

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
VERBS = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}


def run(federation: Federation, rounds: int | None = None) -> list[RoundManifest]:
    from flows.federated_run import federated_run

    federated_run(federation, rounds)
    return history(run_of(federation))


def on_s3(file: Path, bucket: str, endpoint: str) -> Federation:
    """The federation of a file, moved: store, text and shards are in a bucket, private state stays here."""
    import s3fs

    from photon_core.data.prepare import prepare_site
    from schemas.reading.load import load_federation

    data = yaml.safe_load(file.read_text())
    data |= {"store": f"s3://{bucket}/x", "storage": {"endpoint_url": endpoint}}
    for site in data["sites"]:
        text = site["streams"][0]["source"]
        s3fs.S3FileSystem(endpoint_url=endpoint).put_file(str(file.parent / text), f"{bucket}/{text}")
        site |= {
            "state_dir": f"remote/{site['name']}",
            "streams": [{"name": "text", "source": f"s3://{bucket}/{text}"}],
            "shards": f"s3://{bucket}/private/{site['name']}",
        }
    moved = file.with_name("moved.yaml")
    moved.write_text(yaml.safe_dump(data))
    federation = load_federation(moved)
    for site in federation.sites:
        prepare_site(view_of(federation, site.name))
        # what trains has to bring its shards from the bucket
        shutil.rmtree(view_of(federation, site.name).data_dir)
    return federation


def test_s3_gives_the_same_model_keeps_secrets_and_sites_to_their_places(
    prepared: Callable[..., Federation],
    write_federation: Callable[..., Path],
    s3_bucket: str,
    s3_proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    average = {"optimizer_state": "average"}  # as in the default recipe: moments go to all sites
    here = run(prepared(local=average))
    federation = on_s3(write_federation(folder="there", local=average), s3_bucket, s3_proxy.url)

    caplog.set_level(logging.DEBUG)
    caplog.handler.setLevel(logging.INFO)
    assert run(federation, rounds=1)[-1].model_sha256 == here[1].model_sha256
    s3_proxy.requests.clear()
    site_alone(federation, "a", 2)
    check_requests(s3_proxy, s3_bucket, "a")
    check_policy(s3_bucket)

    s3_proxy.away_for(6.0)
    away = s3_proxy.fault
    s3_proxy.fault = lambda request: cut_once(s3_proxy, request) or away(request)
    there = run(federation)
    assert sum(request.method == "PUT" and "/sites/b/" in request.path for request in s3_proxy.broken) >= 1
    assert len(s3_proxy.broken) >= 4
    assert [r.model_sha256 for r in there] == [r.model_sha256 for r in here]
    assert not any(r.left_out for r in there)

    check_secrets(federation, caplog.text + "".join(capfd.readouterr()))


def cut_once(proxy: FaultProxy, request: Request) -> Any:
    """The first upload of a site's shard ends in the middle."""
    shard = request.method == "PUT" and "/sites/" in request.path and request.path.endswith(".safetensors")
    return ("cut", 3000) if shard and not any(r.path == request.path for r in proxy.broken) else None


def site_alone(federation: Federation, site: str, t: int) -> None:
    """What the site's own worker does in a round: its part, and the evaluation of a candidate."""
    from prefect import flow

    from flows.site import failure, site_steps
    from tasks.runtime import runtime_of
    from tasks.site import evaluate

    @flow
    def part() -> None:
        with runtime_of(federation, f"site:{site}") as runtime:
            view = view_of(federation, site)
            assert not failure(site_steps(runtime, view, t))
            evaluate(runtime, view, t, candidate_of(federation, t - 1))

    part()


def candidate_of(federation: Federation, t: int) -> Any:
    manifest = run_of(federation).round(t)
    assert manifest
    return manifest.model


def check_requests(proxy: FaultProxy, bucket: str, site: str) -> None:
    """The site wrote under its own prefix only, and did nothing that the documented policy does not allow it."""
    written = [request.path for request in proxy.requests if request.method not in ("GET", "HEAD")]
    assert any(path.endswith("/update.json") for path in written)
    assert any(re.search(r"/evaluation-\w+\.json$", path) for path in written)
    assert any(path.endswith(".safetensors") for path in written)
    prefix = f"/{bucket}/x/tiny/rounds/000002/sites/{site}/"
    assert [path for path in written if not path.startswith(prefix)] == []
    data = [r for r in proxy.requests if f"private/{site}/" in r.path or f"private%2F{site}" in r.query]
    assert data and {r.method for r in data} <= {"GET", "HEAD"}  # its own, not the store's
    assert [r for r in proxy.requests if r not in data and not allowed(r, bucket, site)] == []


def allowed(request: Request, bucket: str, site: str) -> bool:
    """Whether the policy of docs/store.md, with the names of this test in it, allows a request of the site."""
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text().split("```json\n")[1].split("```")[0]
    for documented, here in (("federation/photon/notes", f"{bucket}/x/tiny"), ("berlin", site)):
        text = text.replace(documented, here)
    text = text.replace("s3:::federation", f"s3:::{bucket}").replace("photon/notes/", "x/tiny/")
    verb = "ListBucket" if "list-type=2" in request.query else VERBS.get(request.method, request.method)
    part = "partNumber" in request.query or "uploads" in request.query
    unconditional = not part and "if-none-match: *" not in request.headers.lower()
    effects = set()
    for statement in json.loads(text)["Statement"]:
        fits = f"s3:{verb}" in _list(statement["Action"]) and f"photon-{site}" in str(statement["Principal"])
        if statement["Effect"] == "Deny":  # the condition of NobodyOverwrites
            fits = verb == "PutObject" and unconditional
        elif verb == "ListBucket":
            wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "")
            fits = fits and fnmatchcase(parse_qs(request.query)["prefix"][0], wanted)
        else:
            name = f"arn:aws:s3:::{request.path[1:]}"
            fits = fits and any(fnmatchcase(name, resource) for resource in _list(statement["Resource"]))
        if fits:
            effects.add(statement["Effect"])
    return effects == {"Allow"}


def check_policy(bucket: str) -> None:
    """What the policy is there to refuse."""
    rounds = f"/{bucket}/x/tiny/rounds/000002"
    refused = [
        Request("PUT", f"{rounds}/{path}", "", "If-None-Match: *", 1)
        for path in ("round.json", "model/x", "sites/b/0001/x", "sites/b/sites/a/x", "../000002/sites/a/x")
    ]
    refused += [
        Request("GET", f"{rounds}/sites/b/0001/x", "", "", 0),
        Request("PUT", f"{rounds}/sites/a/x", "", "", 1),
    ]
    assert [r for r in refused if allowed(r, bucket, "a")] == []
    assert allowed(Request("PUT", f"{rounds}/sites/a/0001/x", "", "If-None-Match: *", 1), bucket, "a")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
