"""Cancelling a round cancels its sites' flow runs, which Prefect by itself leaves running."""

from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import State

from flows.deploy.pages import PAGE, pages
from tasks.remote.own_server import RUNS, SCORES, OwnServer, call_tag
from tasks.remote.watch import cancel, tagged_runs

SITE_FLOWS = ["site-round", "site-evaluate", "site-start", "fit", "fit-evaluate"]
UNDER_WAY = [StateType.PENDING, StateType.RUNNING]
LIVE = [*UNDER_WAY, StateType.SCHEDULED, StateType.PAUSED]


def cancel_sites(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook, which Prefect calls with keywords: cancel every flow run of the federation's sites that has not ended.

    Cancels nothing while another round of the run is running: all rounds of a run share their sites' flow runs.
    """
    tag = f"run:{flow_run.parameters['federation']['run']}"
    with get_client(sync_client=True) as client:
        rounds = _flow_runs(client, ["federated-round"], UNDER_WAY, tag)
        mine = _flow_runs(client, ["federated-round"], UNDER_WAY, tag, flow_run)
        if {found.id for found in rounds} - {flow_run.id, *(found.id for found in mine)}:
            return
        for child in _flow_runs(client, SITE_FLOWS, LIVE, tag):
            cancel(client, child, f"{flow.name} '{flow_run.name}' is {state.name}")


def cancel_call(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook of `fit` and `fit-evaluate`: cancel what the member's own Prefect server does for this flow run."""
    server = OwnServer.of_environment()
    if server is None:
        return
    tag = call_tag(flow_run.parameters["federation"]["run"], flow_run.parameters["t"])
    with server.client() as client:
        for run in tagged_runs(client, RUNS if flow.name == "fit" else SCORES, [f"run:{server.run}", tag]):
            cancel(client, run, f"{flow.name} '{flow_run.name}' is {state.name}")


def _flow_runs(
    client: SyncPrefectClient, flows: list[str], states: list[StateType], tag: str, parent: FlowRun | None = None
) -> list[FlowRun]:
    """Flow runs of these flows, in these states, with the tag. With a parent, only its flow runs."""
    return pages(
        lambda offset: client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=flows)),
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[tag]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id]) if parent else None,
            ),
            limit=PAGE,
            offset=offset,
        )
    )
