"""The bucket policy of docs/store.md under moto's IAM, and S3's 403 for what is missing.

The bucket policy becomes each role's own: moto's IAM knows users with statements on objects, no conditions.
"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import StoreRefused
from photon_core.run.opening import Run
from photon_core.store.store import Store
from tests.s3_server import FaultProxy, Request

BUCKET, PREFIX, RUN = "federation", "photon", "notes"
DENIED = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def statements(role: str) -> list[dict[str, Any]]:
    """What the documented policy lets a role do, without its conditions, as the role's own policy."""
    text = (Path(__file__).parents[3] / "docs" / "store.md").read_text("utf-8").split("```json\n")[1]
    found = json.loads(text.split("```")[0].replace("?", "."))["Statement"]  # moto's word for one character
    mine = [s for s in found if s["Effect"] == "Allow" and f"role/{role}" in json.dumps(s["Principal"])]
    assert mine
    return [{key: s[key] for key in ("Effect", "Action", "Resource")} for s in mine]


@pytest.fixture(scope="module")
def made(s3_endpoint: str) -> dict[str, dict[str, str]]:
    """The bucket and its roles: role -> credentials."""
    import boto3

    iam, s3 = (boto3.client(name, endpoint_url=s3_endpoint) for name in ("iam", "s3"))
    s3.create_bucket(Bucket=BUCKET)
    for path in ("run.json", "rounds/000001/round.json", "rounds/000001/sites/lyon/0001/update.json"):
        s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{RUN}/{path}", Body=b"{}")
    made = {}
    for role in ("photon-coordinator", "photon-berlin"):
        iam.create_user(UserName=role)
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements(role)})
        iam.put_user_policy(UserName=role, PolicyName="bucket", PolicyDocument=policy)
        key = iam.create_access_key(UserName=role)["AccessKey"]
        made[role] = {"key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
    return made


@pytest.fixture
def keys(made: dict[str, dict[str, str]], s3_endpoint: str) -> Iterator[dict[str, dict[str, str]]]:
    """The same, while the IAM is asked."""
    enforce(s3_endpoint, "0")
    yield made
    enforce(s3_endpoint, "inf")


def enforce(endpoint: str, after: str) -> None:
    """Have moto ask its IAM after this number of requests."""
    url, plain = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, after.encode(), plain)).close()


def test_a_site_does_its_work_and_nothing_else(keys: dict[str, dict[str, str]], s3_endpoint: str) -> None:
    store = Store(f"s3://{BUCKET}/{PREFIX}", endpoint_url=s3_endpoint, **keys["photon-berlin"])
    run = Run(store, RUN)
    assert run.round(2) is None and run.committed_attempt(2, "berlin") == 0
    mine = f"{RUN}/rounds/000002/sites/berlin/0001"
    with store.open_write(f"{mine}/model.safetensors") as file:
        file.write(b"tensors")
    store.create(f"{mine}/update.json", b"{}")
    assert store.read(f"{RUN}/run.json") == store.read(f"{mine}/update.json") == b"{}"
    assert not store.exists(f"{RUN}/rounds/000002/round.json")
    for path in ("rounds/000002/round.json", "run.json", "rounds/000002/sites/lyon/0001/update.json"):
        with pytest.raises(StoreRefused, match="AccessDenied"):
            store.create(f"{RUN}/{path}", b"mine")
    with pytest.raises(StoreRefused, match="HTTP 403"):
        store.read(f"{RUN}/rounds/000001/sites/lyon/0001/update.json")


def test_a_coordinator_reads_and_writes_the_run(keys: dict[str, dict[str, str]], s3_endpoint: str) -> None:
    store = Store(f"s3://{BUCKET}/{PREFIX}", endpoint_url=s3_endpoint, **keys["photon-coordinator"])
    store.create(f"{RUN}/rounds/000002/round.json", b"{}")
    assert store.read(f"{RUN}/rounds/000001/sites/lyon/0001/update.json") == b"{}"
    with pytest.raises(StoreRefused, match="AccessDenied"):
        store.create("another/run.json", b"mine")


@pytest.mark.parametrize("listed", [True, False])
def test_a_403_for_a_missing_object_means_missing_where_the_list_can_tell(
    listed: bool, s3_bucket: str, s3_proxy: FaultProxy
) -> None:
    """As S3 answers where the right to list hangs on a condition that a look at one object does not meet."""
    store = Store(f"s3://{s3_bucket}/{PREFIX}", endpoint_url=s3_proxy.url)
    store.create(f"{RUN}/held/there", b"held")
    store.create(f"{RUN}/held/there-too", b"held")
    s3_proxy.answer = DENIED

    def fault(request: Request) -> str | None:
        one = request.method in ("GET", "HEAD") and "list-type" not in request.query
        return "answer" if one or (not listed and "list-type" in request.query) else None

    s3_proxy.fault = fault
    if listed:
        run = Run(store, RUN)
        assert run.run_manifest() is None and run.round(3) is None and run.committed_attempt(3, "berlin") == 0
        assert not store.exists(f"{RUN}/held/the")
        with pytest.raises(FileNotFoundError):
            store.read(f"{RUN}/held/the")
    for path in ("there",) if listed else ("there", "the"):  # not missing, or not reported as missing
        with pytest.raises(StoreRefused, match="HTTP 403"):
            store.read(f"{RUN}/held/{path}")
        with pytest.raises(StoreRefused, match="HTTP 403"):
            store.exists(f"{RUN}/held/{path}")
