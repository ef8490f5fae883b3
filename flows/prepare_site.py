"""Text to validated shards, at the site, as a flow run on its work pool."""

from prefect import flow
from prefect.states import Completed, State

from schemas.federation import Federation
from tasks import prepare
from tasks.remote.present import own_file


@flow(name="prepare-site", flow_run_name="prepare {site}")
def prepare_site(federation: Federation, site: str) -> State:
    """What `photon prepare --site` does. Twice does nothing the second time.

    Args:
        federation: the federation file.
        site: the site's name.
    """
    federation, edited = own_file(federation, f"site '{site}'")
    message = prepare.prepare(federation, site)
    return Completed(message=f"{message} ({edited})" if edited else message)
