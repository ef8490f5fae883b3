"""One site uploads the model that it holds and the run starts from."""

from prefect import flow

from schemas.federation import Federation
from tasks import site as steps
from tasks.processes import shutdown
from tasks.remote.present import own_file


@flow(name="site-start", flow_run_name="{site} start")
def site_start(federation: Federation, site: str) -> None:
    """The model goes to the site's place in the store; the coordinator makes it round 0.

    Args:
        federation: the federation file; its start.checkpoint is a path at this site.
        site: the site's name.
    """
    federation, _ = own_file(federation, f"site '{site}'")
    try:
        steps.start(federation, site)
    finally:
        shutdown()
