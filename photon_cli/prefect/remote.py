"""The Prefect server of a deployed federation: check that it answers and grants access."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from photon_core.errors import PhotonError
from schemas.server_errors import cause

ANSWER_SECONDS = 20.0  # timeout for the server's first answer


class NotReady(PhotonError):
    """A precondition of the work is missing. The message names it."""


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Raise NotReady, with the server's URL, if the server fails or refuses during the block."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise NotReady(
            f"the Prefect server at {url} failed ({cause(error)}); look at its log, then "
            "run the same command again"
        ) from None


def require_server() -> str:
    """The server's address, once it has answered a request that needs permission.

    Raises:
        NotReady: no server is named, it does not answer, or it denies access.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    url = re.sub(r"//[^/@]*@", "//", PREFECT_API_URL.value() or "")  # for messages: without a password
    if not url:
        raise NotReady(
            "no Prefect server is named; set PREFECT_API_URL, for example to "
            "http://coordinator.example.org:4200/api"
        )
    try:
        once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
        with temporary_settings(once), get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise NotReady(
                f"the Prefect server at {url} denies access; set PREFECT_API_AUTH_STRING as on the server"
            ) from None
        raise NotReady(
            f"the Prefect server at {url} answers with HTTP status {error.response.status_code}; look at its log"
        ) from None
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        raise NotReady(
            f"the Prefect server at {url} does not answer ({type(error).__name__}); start it, or correct "
            "PREFECT_API_URL"
        ) from None
    return str(url)
