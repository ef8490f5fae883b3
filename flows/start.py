"""The start of a run from one site's model: that site uploads it before round 0 is opened."""

import time

from prefect import tags

from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.view import view_of
from tasks import site as steps
from tasks.remote import dispatch
from tasks.remote.present import Present
from tasks.remote.waiting import Alone
from tasks.runtime import Runtime


def start_at_site(runtime: Runtime, federation: Federation, deployed: bool) -> Federation:
    """Return when the model of start.site is in the store, or at once without start.site.

    Returns:
        the file, which may have been edited during the wait.

    Raises:
        FederationError: the site's checkpoint does not fit the file's model.
        DeadlinePassed: the site's worker did not upload the model within rounds.deadline.
    """
    site = federation.start.site
    if site is None or run_of(federation).round(0) is not None:
        return federation
    with tags(f"run:{federation.run}", "round:0", f"site:{site}"):
        if deployed:
            present = Present(federation, follow=True, born=False)
            deadline = time.time() + federation.rounds.deadline
            dispatch.dispatch_start(view_of(federation, site), deadline, present, Alone(deadline, runtime.log))
            return present.look(fresh=True)
        steps.start(runtime, view_of(federation, site))
    return federation
