"""Which flow runs of sites are cancelled with a round, on a real server; test_failures.py: what then ends."""

from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_a_site_is_cancelled_with_the_last_round_that_waits_for_it() -> None:
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling, Completed, Pending, Running

    from flows.cancellation import cancel_sites
    from flows.federated_run import federated_run

    with get_client(sync_client=True) as client:

        def started(name: str, **more: Any) -> Any:
            parameters = {"federation": {"run": "twice"}}
            named = flow(lambda federation: federation, name=name)
            return client.create_flow_run(
                named, parameters=parameters, tags=["run:twice"], state=Running(), **more
            )

        def state_of(flow_run: Any) -> str:
            return client.read_flow_run(flow_run.id).state.name

        whole, other = started("federated-run"), started("federated-round")
        step = client.create_task_run(task(lambda: None), whole.id, dynamic_key="0", state=Pending())
        part, site = started("federated-round", parent_task_run_id=step.id), started("site-round")

        for cancelled in (whole, part):
            cancel_sites(flow=federated_run, flow_run=cancelled, state=Cancelling())  # as Prefect calls it
            assert state_of(site) == "Running", "the other round waits for it"
        client.set_flow_run_state(part.id, Completed(), force=True)
        client.set_flow_run_state(other.id, Completed(), force=True)
        third = started("federated-round", parent_task_run_id=step.id)
        cancel_sites(flow=federated_run, flow_run=whole, state=Cancelling())
        assert (state_of(site), state_of(third)) == ("Cancelling", "Running")
