"""A site's flow run: a missing deployment, or one of another version, is told at once; a crash with the result."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from photon_core.errors import PhotonError
from photon_core.rounds import commit_evaluation, run_of
from schemas.load import load_federation
from schemas.manifests import FileEntry
from tests.flows.deployment import Deployed, SessionServer, eventually

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


def test_an_evaluation_that_was_started_again_says_so(
    prefect_server: str, write_federation: Callable[..., Path]
) -> None:
    from prefect import flow
    from prefect.states import Crashed

    from flows.apply import apply
    from flows.catalogue import plan
    from tasks.dispatch import dispatch_evaluation
    from tasks.incidents import INCIDENTS

    federation = load_federation(write_federation(("a",), pools={"a": "dispatched"}, run="evaluated"))
    apply(plan(federation))
    deployed = Deployed(SessionServer(), federation)
    model = [FileEntry(path="m", sha256="a" * 64, bytes=1)]
    scores = {"loss": 1.0, "perplexity": 2.0, "tokens": 3.0}

    @flow
    def evaluating() -> dict[str, float]:
        return dispatch_evaluation(federation, "a", 1, model, time.time() + 200)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(evaluating)
        first = eventually(lambda: deployed.flow_runs("site:a", "round:1"), "it is asked to")
        with deployed.server.client() as client:
            client.set_flow_run_state(first[0].id, Crashed(message="killed"), force=True)
        eventually(lambda: len(deployed.flow_runs("site:a", "round:1")) == 2, "it is asked to again")
        commit_evaluation(run_of(federation), 1, "a", model, scores)
        assert found.result() == scores
    told = ["evaluation: its flow run was Crashed (killed)", "evaluation: it was started again"]
    assert INCIDENTS.take("evaluated", 1) == {"a": told}
