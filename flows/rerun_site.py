"""Repeat one site's training for a round that is not aggregated yet."""

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
    """Have one site repeat its part of round t, on its worker.

    Args:
        federation: federation file.
        site: name of the site.
        t: number of the round, which must not be committed yet.
        force: flag: start a new attempt even if an update is committed; the old one is kept.

    Raises:
        FederationError: round t does not sample the site.
        StoreConflict: round t is committed, or was committed before the update arrived; it does not change.
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
