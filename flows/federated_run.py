"""A whole run: one round after the other, until the count is reached."""

from collections.abc import Iterable

from prefect import flow, tags
from prefect.states import Completed, State

from flows.cancellation import cancel_sites
from flows.federated_round import federated_round
from flows.start import start_at_site
from photon_core.aggregation.fit import rounds_to_make
from photon_core.errors import PhotonError
from photon_core.run.line import progress, rounds_left
from photon_core.run.run import Run, run_of
from schemas.federation import Federation
from tasks import coordinator
from tasks.remote.present import COORDINATOR, Present, own_file
from tasks.runtime import runtime_of


@flow(name="federated-run", flow_run_name="{federation.run}", on_cancellation=[cancel_sites])
def federated_run(
    federation: Federation, rounds: int | None = None, deployed: bool = False, entry: int | None = None
) -> State:
    """Train from the latest committed round up to the federation's round count.

    Args:
        federation: federation file.
        rounds: maximum number of rounds now; default: all remaining rounds.
        deployed: flag: each site's worker does its part.
        entry: number of an entry into a round of the parent: train the rounds of that call instead.
    """
    federation, edited = own_file(federation, COORDINATOR)
    with tags(f"run:{federation.run}"), runtime_of(federation) as runtime:
        federation = start_at_site(runtime, federation, deployed)
        present = Present(federation, follow=deployed)
        latest = coordinator.open_run(runtime, federation)
        run = run_of(federation)
        for t in _numbers(run, federation, latest, rounds, entry):
            with tags(f"round:{t}"):
                federated_round(present.look(fresh=True), t, deployed)
        runtime.reports.finish()
        done = federation.total_rounds - rounds_left(federation, run.round(run.latest() or 0))
    message = f"{federation.run}: {progress(federation, done)} are committed"
    return Completed(message=f"{message} ({edited})" if edited else message)


def _numbers(
    run: Run, federation: Federation, latest: int, rounds: int | None, entry: int | None
) -> Iterable[int]:
    """Numbers of the rounds to train. Each must be committed before the next is requested."""
    if entry is None:
        left = rounds_left(federation, run.round(latest))
        return range(latest + 1, latest + 1 + (left if rounds is None else min(left, rounds)))
    begun = run.round(entry)
    if begun is None or begun.kind != "entry":
        raise PhotonError(f"round {entry} of run '{run.run}' is not an entry into a round of its parent")
    return rounds_to_make(run, federation, begun)
