"""Train one site again for a round that is not aggregated yet."""

import time

from prefect import flow, tags
from prefect.states import Completed, State

from photon_core.aggregation.attempts import newest_update
from photon_core.run.birth import as_born
from photon_core.run.members import member
from photon_core.run.run import run_of
from photon_core.run.updates import check_asked, check_in_time, next_attempt
from schemas.federation import Federation
from tasks.remote import dispatch
from tasks.remote.present import COORDINATOR, own_file


@flow(name="rerun-site", flow_run_name="rerun {site} round {t}")
def rerun_site(federation: Federation, site: str, t: int, force: bool = False) -> State:
    """Have one site do its part of round t again, on its own worker.

    Args:
        federation: the federation file.
        site: the site's name.
        t: number of the round; it must not be committed yet.
        force: train again although an update is committed: a new attempt beside the old one.

    Raises:
        FederationError: round t does not ask for the site.
        StoreConflict: round t is committed, or was before the update came; what it aggregated stands.
    """
    federation, _ = own_file(federation, COORDINATOR)
    check_asked(member(federation, site), t)
    run = run_of(federation)
    federation = as_born(run, federation)
    one = member(federation, site)
    attempt = next_attempt(run, t, site) if force else 1
    with tags(f"run:{federation.run}", f"round:{t}", f"site:{site}"):
        dispatch.dispatch_round(one, t, time.time() + federation.rounds.deadline, attempt)
    update = newest_update(run, one, t)
    assert update is not None
    check_in_time(run, update)
    return Completed(message=f"site '{site}', round {t}: the update is committed")
