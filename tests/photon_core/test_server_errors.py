"""Point 7: what a hostile server writes into its errors is shown nowhere; its kind and a real code are."""

import traceback
from pathlib import Path

import pytest

from photon_core.data.sources import list_files
from photon_core.errors import DataError
from photon_core.jobs.child import portable
from photon_core.run.run import Run
from photon_core.store.store import Store
from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import check_paths
from schemas.server_errors import told
from tests.federations import sections
from tests.s3_server import SECRETS, FaultProxy, hostile


@pytest.fixture
def endpoint(s3_proxy: FaultProxy) -> str:
    """A server that answers everything with the client's own secrets."""
    s3_proxy.answer = hostile(*SECRETS.values())
    s3_proxy.fault = lambda _: "answer"
    return s3_proxy.url


def silent(error: BaseException) -> str:
    """The error's text, after a look that neither it nor its traceback holds a secret."""
    whole = str(error) + "".join(traceback.format_exception(error)) + str(portable(error))
    assert not any(secret in whole for secret in SECRETS.values())
    return str(error)


def test_of_the_store(endpoint: str, s3_bucket: str) -> None:
    run = Run(Store(f"s3://{s3_bucket}/x", endpoint_url=endpoint), "r")
    for work in (run.run_manifest, lambda: run.store.ls("r"), lambda: run.store.create("r/a", b"x")):
        with pytest.raises(OSError) as caught:
            work()
        assert "HTTP 400" in silent(caught.value)


def test_of_a_source(endpoint: str, s3_bucket: str) -> None:
    with pytest.raises(DataError, match=r"cannot be listed \(HTTP 400\)") as caught:
        list_files(f"s3://{s3_bucket}/a/*.txt", {"endpoint_url": endpoint})
    silent(caught.value)


def test_of_a_file_that_is_checked(endpoint: str, s3_bucket: str) -> None:
    stream = {"name": "s", "source": f"s3://{s3_bucket}/a/*.txt"}
    site = {"name": "a", "streams": [stream], "storage": {"endpoint_url": endpoint}}
    with pytest.raises(FederationError, match=r"cannot be reached \(HTTP 400\); check address") as caught:
        check_paths(Federation.model_validate(sections(sites=[site])))
    silent(caught.value)


def test_a_real_code_is_told_and_this_machines_own_words_are(tmp_path: Path) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": "NoSuchBucket", "Message": "hush"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    assert told(ClientError(answer, "GetObject")) == "HTTP 404 NoSuchBucket"
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_bytes()
    assert told(caught.value) == str(caught.value)
