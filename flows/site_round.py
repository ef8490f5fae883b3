"""One site in one round: validate -> train H local steps -> upload the update (Algorithm 1, client k)."""

from prefect.futures import PrefectFuture

from schemas.federation import Federation
from tasks import site as steps


def site_round(federation: Federation, site: str, t: int) -> dict[str, PrefectFuture]:
    """Submit the site's steps to the flow run that this is called in; each waits for the one before."""
    checked = steps.validate.submit(federation, site, t)
    trained = steps.train.submit(federation, site, t, wait_for=[checked])
    uploaded = steps.upload.submit(federation, site, t, trained)
    return {"validate": checked, "train": trained, "upload": uploaded}
