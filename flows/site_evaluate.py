"""One site evaluates a candidate for the next global model on its held-out text."""

from prefect import flow, tags

from schemas.federation import Federation
from schemas.manifests import FileEntry
from tasks import site as steps
from tasks.processes import shutdown
from tasks.remote.present import own_file
from tasks.tags import SITE


@flow(name="site-evaluate", flow_run_name="{site} evaluates round {t}")
def site_evaluate(federation: Federation, site: str, t: int, model: list[FileEntry]) -> None:
    """Scores go to the site's place in the store.

    Args:
        federation: the federation file.
        site: the site's name.
        t: number of the round that the candidate would become.
        model: the candidate's files.
    """
    federation, _ = own_file(federation, f"site '{site}'")
    try:
        with tags(f"{SITE}{site}"):
            steps.evaluate(federation, site, t, model)
    finally:
        shutdown()
