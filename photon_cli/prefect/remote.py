"""The Prefect server that a deployed federation runs on: is it there, and does it let us in?"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from photon_core.errors import PhotonError
from schemas.server_errors import cause

ANSWER_SECONDS = 20.0  # for its first answer


class NotReady(PhotonError):
    """Something that has to be there before work can start is not. Its text names it."""


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Name a server that goes away, or refuses, in the middle of the block. Raises NotReady."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise NotReady(
            f"the Prefect server at {url} failed ({cause(error)}); look at its log, and "
            "write the same command again"
        ) from None


def require_server() -> str:
    """The server's address, once it has answered a question that needs permission.

    Raises:
        NotReady: no server is named, it does not answer, or it does not let us in.
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
            "no Prefect server is named; set PREFECT_API_URL, such as http://coordinator.example.org:4200/api"
        )
    try:
        once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
        with temporary_settings(once), get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise NotReady(
                f"the Prefect server at {url} does not let us in; set PREFECT_API_AUTH_STRING as on the server"
            ) from None
        raise NotReady(
            f"the Prefect server at {url} answers {error.response.status_code}; look at its log"
        ) from None
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        raise NotReady(
            f"the Prefect server at {url} does not answer ({type(error).__name__}); start it, or correct "
            "PREFECT_API_URL"
        ) from None
    return str(url)
