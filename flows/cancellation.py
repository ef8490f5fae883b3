"""Cancelling a round cancels what its sites are doing for it: Prefect by itself leaves them running."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Cancelling, State

from flows.pages import PAGE, pages

SITE_FLOWS = ["site-round", "site-evaluate", "site-start"]
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


def cancel_sites(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook: cancel every flow run of the federation's sites that has not ended."""
    run = flow_run.parameters["federation"]["run"]
    with get_client(sync_client=True) as client:
        mine = pages(
            lambda offset: client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=SITE_FLOWS)),
                flow_run_filter=FlowRunFilter(
                    tags=FlowRunFilterTags(all_=[f"run:{run}"]),
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE)),
                ),
                limit=PAGE,
                offset=offset,
            )
        )
        for child in mine:
            message = f"the round '{flow_run.name}' was cancelled"
            started = child.state_type in (StateType.RUNNING, StateType.PENDING)
            ending = Cancelling(message=message) if started else Cancelled(message=message)
            client.set_flow_run_state(child.id, ending, force=True)
