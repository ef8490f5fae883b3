"""A round outlives the lease of its deployment's concurrency limit."""

import threading
from uuid import uuid4

import pytest

import flows.federated_round  # noqa: F401  as the process of a round's flow run does


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_round_goes_on_when_the_restarted_server_does_not_know_its_lease() -> None:
    """As Prefect's engine does around a deployed flow: the server answers the renewal with 410 Gone."""
    from prefect import flow_engine

    lease = uuid4()
    with flow_engine.maintain_concurrency_lease(lease, 300, raise_on_lease_renewal_failure=True):
        for thread in threading.enumerate():
            if str(lease) in thread.name:
                thread.join(60)
                assert not thread.is_alive(), "the renewal has not failed yet"
