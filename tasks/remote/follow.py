"""Follow a flow run until its result is in the store, through crashes, retries, and an unreachable server."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient

from photon_core.errors import DeadlinePassed, PhotonError, StoreUnavailable
from photon_core.evidence.events import Fact
from tasks.remote.waiting import Waiting
from tasks.remote.watch import Asks, Watch

POLL_SECONDS = 2.0
AWAY_SECONDS = 60.0  # extra wait beyond the deadline for an unreachable server or store


class Request(Asks, Protocol):
    """A request whose server is known."""

    @property
    def site(self) -> str:
        """Name under which `Waiting` knows it."""
        ...

    @property
    def who(self) -> str:
        """Who does the work, for messages."""
        ...

    @property
    def silence(self) -> float:
        """Seconds without a sign after which its flow run counts as crashed."""
        ...

    def connect(self) -> AbstractContextManager[SyncPrefectClient]:
        """A client of the server, which the request itself uses, too."""
        ...


def follow(request: Request, done: Callable[[], bool], deadline: float, waiting: Waiting) -> list[Fact]:
    """Start, find or restart the request's flow run, and wait until `done`. Also waits for an unreachable server.

    Args:
        request: request for a flow run.
        done: function that returns whether the result is in the store.
        deadline: Unix time in seconds.
        waiting: state shared with the flow that waits.

    Returns:
        the problems up to the result.

    Raises:
        DeadlinePassed: the result is missing at the deadline; the message ends with the state of the flow run.
    """
    with request.connect() as client:
        watch = Watch(request, request.silence, get_run_logger())
        while True:
            try:
                if done():
                    return watch.incidents(client)
                if time.time() > deadline:
                    watch.give_up(client)
                    raise DeadlinePassed(
                        f"{request.who} was not finished at the deadline; its flow run: {watch.story()}"
                    )
                watch.look(client)
            except Exception as error:  # server and store each raise their own errors: wait for both
                if isinstance(error, PhotonError) and not isinstance(error, StoreUnavailable):
                    raise
                watch.away(error)
                if time.time() > deadline + AWAY_SECONDS:
                    raise DeadlinePassed(
                        f"{request.who} was not finished at the deadline: {watch.story()}"
                    ) from error
            waiting.report(request.site, watch.failed)
            if why := waiting.pause(request.site, POLL_SECONDS):
                raise PhotonError(f"stopped waiting for {request.who}: {why}")
