"""Roll back to an earlier round: the next round starts from its model. Nothing is removed."""

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, State

from photon_core.run.line import sentence
from schemas.federation import Federation
from tasks import coordinator
from tasks.remote.present import COORDINATOR, own_file
from tasks.rollback import roll_back
from tasks.runtime import runtime_of


def _flow_run_name() -> str:
    arguments = flow_run.parameters
    federation = arguments["federation"]
    run = federation["run"] if isinstance(federation, dict) else federation.run
    return f"{run} back to round {arguments['to']}"


@flow(name="rollback", flow_run_name=_flow_run_name)
def rollback(federation: Federation, to: int, reason: str = "") -> State:
    """Commit a round without updates that restores round `to`: model, server optimizer and averaged moments.

    Args:
        federation: federation file.
        to: number of a committed round before the latest, whose tensors photon gc has not removed.
        reason: reason for the rollback, for the round's manifest and the report.

    Raises:
        FederationError: there is no such round, or the run already has its model.
        StoreConflict: a round was committed at the same moment; nothing was rolled back.
    """
    federation, edited = own_file(federation, COORDINATOR)
    with runtime_of(federation) as runtime:
        manifest = roll_back(runtime, federation, to, reason)
        if federation.trackers:
            coordinator.track(runtime, federation, manifest)
        runtime.reports.finish()
    return Completed(message=f"{sentence(manifest)} ({edited})" if edited else sentence(manifest))
