"""The site's preparation as a task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.federation import Federation


@task(task_run_name="{site} / prepare", cache_policy=NO_CACHE)
def prepare(federation: Federation, site: str) -> str:
    """Tokenise, check and pack the site's text. Returns a line that says what there is.

    Raises:
        DataError: text that cannot be read, or that an expectation refuses.
    """
    from photon_core.data.prepare import prepare_site

    manifest = prepare_site(federation, site)
    return f"{manifest.train_documents} documents, {manifest.train_tokens} tokens to train on"
