"""A deployed federation to break: its server, its workers, and a way to put federations on them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows.deployment import Deployed, Workers, deployed, served
from tests.flows.planted import plant_in_environment
from tests.s3_server import credentials


@pytest.fixture(scope="module")
def breakable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Training is forked from the session's fork server, as beside a worker that `photon join` has started; the
    environment holds the S3 server's credentials, and what tests/flows/planted.py plants there."""
    request.getfixturevalue("prefect_server")  # with which the fork server comes
    home = tmp_path_factory.mktemp("breakable")
    with credentials(), pytest.MonkeyPatch.context() as patch:
        plant_in_environment(tmp_path_factory.mktemp("planted"), patch)
        with served(home) as workers:
            yield workers


@pytest.fixture
def deploy(breakable: Workers, tmp_path: Path) -> Callable[..., Deployed]:
    """Prepares and deploys a federation, in a folder of the test's own."""

    def make(*sites: str, **sections: object) -> Deployed:
        return deployed(breakable, tmp_path / "fed", sites, **sections)

    return make
