"""The start of a run whose model one site holds: that site uploads it before round 0 is opened."""

import time

from prefect import tags

from photon_core.rounds import run_of
from schemas.federation import Federation
from tasks import dispatch
from tasks import site as steps


def start_at_site(federation: Federation, deployed: bool) -> None:
    """Return when the model that start.site holds is in the store; at once where no site holds it.

    Raises:
        FederationError: the site's checkpoint is not of the file's model.
        DeadlinePassed: the site's own worker did not upload it within rounds.deadline.
    """
    site = federation.start.site
    if site is None or run_of(federation).round(0) is not None:
        return
    with tags(f"run:{federation.run}", "round:0", f"site:{site}"):
        if deployed:
            dispatch.dispatch_start(federation, site, time.time() + federation.rounds.deadline)
        else:
            steps.start(federation, site)
