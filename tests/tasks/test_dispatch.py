"""Starting a site's flow run: a deployment that is missing, or of another version, is told at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.errors import PhotonError
from schemas.load import load_federation

pytestmark = pytest.mark.slow


def test_a_deployment_that_is_missing_or_of_another_version(
    prefect_server: str, write_federation: Callable[..., Path]
) -> None:
    from prefect.client.orchestration import get_client

    from flows.apply import apply
    from flows.catalogue import plan
    from tasks.dispatch import _create

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="dispatched"))
    parameters = {"federation": federation.model_dump(mode="json") | {"zebra": 1}, "site": "a", "t": 1}
    with get_client(sync_client=True) as client:
        with pytest.raises(
            PhotonError, match=r"there is no deployment 'site-round/dispatched-a'\. Write: photon dep"
        ):
            _create(client, "site-round", federation, "a", parameters, "key", [])
        apply(plan(federation))
        with pytest.raises(
            PhotonError, match=r"of another version: .*'zebra' was unexpected.* Write: photon deploy"
        ):
            _create(client, "site-round", federation, "a", parameters, "key", [])
