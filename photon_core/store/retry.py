"""Retries with backoff and a time limit, for calls to a server.

An object store answers 503 when it is busy, and connections break. Both pass. What does not pass (no credentials,
no permission, no such bucket) is raised at once. Messages carry the server's error code, never its text, which on
some servers repeats the access key.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from photon_core.errors import StoreRefused, StoreUnavailable
from schemas.server_errors import cause, error_code, http_status, quiet

T = TypeVar("T")

RETRY_SECONDS = 120.0  # s that a server may be unreachable before a step fails; the step itself is retried later
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # s
BUSY = {429, 500, 502, 503, 504}
PASSING = {
    *("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"),
    *("ConditionalRequestConflict", "OperationAborted"),  # another writer is active: a retry shows who won
}
REFUSED = {401, 403}


def retry(call: Callable[[], T], what: str, seconds: float = RETRY_SECONDS) -> T:
    """The call's result, after as many tries as fit into the time limit.

    Args:
        call: idempotent function. It must end by itself: each call has its own timeout.
        what: label for messages: what is done, where.
        seconds: time limit of all tries and pauses together; 0 tries once.

    Raises:
        StoreUnavailable: the server was unreachable or busy until the time limit.
        StoreRefused: the server does not permit it, or there are no credentials.
        OSError: anything else that the call raised (FileNotFoundError, FileExistsError, ...).
    """
    start, tries, last = time.monotonic(), 0, ""
    while True:
        try:
            result = call()
            if tries and (log := _outages.get()) is not None:
                log.append(Outage(tries, time.monotonic() - start, last))
            return result
        except Exception as error:
            tries += 1
            last = cause(error)
            if refusal := refused(error):
                raise StoreRefused(
                    f"{what}: refused ({refusal}); check the credentials (environment, profile or block) and what "
                    "the bucket's policy permits them"
                ) from None
            if not passing(error):
                if (plain := quiet(error)) is error:
                    raise
                raise plain from None
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries) * random.uniform(0.5, 1.0)
            if time.monotonic() - start + pause > seconds:
                raise StoreUnavailable(
                    f"{what}: the server failed in {tries} tries over {time.monotonic() - start:.0f} s "
                    f"({cause(error)}). Nothing incomplete is committed. When the server is back, run again"
                ) from None
        time.sleep(pause)


@dataclass(frozen=True)
class Outage:
    """A call that failed before it succeeded: failures, seconds until success, and the last failure's cause."""

    tries: int
    seconds: float
    cause: str


_outages: ContextVar[list[Outage] | None] = ContextVar("_outages", default=None)


@contextmanager
def outages() -> Iterator[list[Outage]]:
    """The outages that this thread's calls survive within the block; the list grows as they happen."""
    found: list[Outage] = []
    token = _outages.set(found)
    try:
        yield found
    finally:
        _outages.reset(token)


def passing(error: BaseException) -> bool:
    """Whether an error is transient: a retry may succeed."""
    if (status := http_status(error)) is not None:
        return status in BUSY or error_code(error) in PASSING
    if isinstance(error, FileExistsError | FileNotFoundError | PermissionError):
        return False
    return isinstance(error, connection_errors(ConnectionError, TimeoutError))


def refused(error: BaseException) -> str:
    """Why the server refuses, or the client for lack of credentials; empty for every other error."""
    status = http_status(error)
    if status in REFUSED and error_code(error) != "RequestTimeTooSkewed":
        return f"{error_code(error) or 'no code'}, HTTP {status}"
    names = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError"}
    if type(error).__name__ in names:
        return f"{type(error).__name__}: there are no credentials to use"
    if status == 403:
        return "RequestTimeTooSkewed: this machine's clock is wrong, HTTP 403"
    return ""


def connection_errors(*more: type[BaseException]) -> tuple[type[BaseException], ...]:
    """`more`, and the errors of broken connections in all clients that are already imported."""
    names = {
        "botocore.exceptions": (
            *("HTTPClientError", "ConnectionError", "ChecksumError", "IncompleteReadError"),
            *("FlexibleChecksumError",),
        ),
        "botocore.parsers": ("ResponseParserError",),
        "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
        "http.client": ("HTTPException",),
        "urllib3.exceptions": ("HTTPError",),
        "fsspec.exceptions": ("FSTimeoutError",),
    }
    modules = {name: sys.modules[name] for name in names if name in sys.modules}
    errors = [getattr(m, cls) for name, m in modules.items() for cls in names[name] if hasattr(m, cls)]
    return (*more, *errors)
