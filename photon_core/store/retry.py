"""Calls to a server that may be away for a while: tried again with growing pauses, and never without an end.

An object store answers 503 when it is busy, and connections break. Both pass. What does not pass (no
credentials, no permission, no such bucket) is told at once. Messages carry the server's error code, never
its text, which on some servers repeats the access key.
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

PATIENCE = 120.0  # s that a server may be away before a step gives up; the step itself is tried again later
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # s
BUSY = {429, 500, 502, 503, 504}
PASSING = {
    *("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"),
    *("ConditionalRequestConflict", "OperationAborted"),  # another writer is at it: whoever asks again learns more
}
REFUSED = {401, 403}


def patiently(call: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """The call's result, after as many tries as fit into `patience` seconds of pauses and failures.

    Args:
        call: harmless to repeat. It must end by itself, within a time of its own.
        what: a few words for messages: what is done, where.
        patience: seconds; 0 tries once.

    Raises:
        StoreUnavailable: the server was away for so long.
        StoreRefused: the server does not let us, or there are no credentials.
        OSError: whatever else the call raised (FileNotFoundError, FileExistsError, ...).
    """
    start, tries, last = time.monotonic(), 0, ""
    while True:
        try:
            result = call()
            if tries and (told := _outages.get()) is not None:
                told.append(Outage(tries, time.monotonic() - start, last))
            return result
        except Exception as error:
            tries += 1
            last = cause(error)
            if refusal := refused(error):
                raise StoreRefused(
                    f"{what}: refused ({refusal}); check the credentials (environment, profile or block) and what "
                    "the bucket's policy lets them do"
                ) from None
            if not passing(error):
                if (plain := quiet(error)) is error:
                    raise
                raise plain from None
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries) * random.uniform(0.5, 1.0)
            if time.monotonic() - start + pause > patience:
                raise StoreUnavailable(
                    f"{what}: the server did not do it in {tries} tries over {time.monotonic() - start:.0f} s "
                    f"({cause(error)}). Nothing half-written is committed; when it is back, run again"
                ) from None
        time.sleep(pause)


@dataclass(frozen=True)
class Outage:
    """A call that failed so many times, for so many seconds, before it was done; and what the last failure was."""

    tries: int
    seconds: float
    cause: str


_outages: ContextVar[list[Outage] | None] = ContextVar("_outages", default=None)


@contextmanager
def outages() -> Iterator[list[Outage]]:
    """What this thread's calls had to be tried again for within the block."""
    found: list[Outage] = []
    token = _outages.set(found)
    try:
        yield found
    finally:
        _outages.reset(token)


def passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next try."""
    if (status := http_status(error)) is not None:
        return status in BUSY or error_code(error) in PASSING
    if isinstance(error, FileExistsError | FileNotFoundError | PermissionError):
        return False
    return isinstance(error, connection_errors(ConnectionError, TimeoutError))


def refused(error: BaseException) -> str:
    """Why the server, or the client for want of credentials, refuses; empty for every other error."""
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
    """`more`, and the errors of broken connections in those clients that are imported already."""
    wanted = {
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
    modules = {name: sys.modules[name] for name in wanted if name in sys.modules}
    found = [getattr(m, cls) for name, m in modules.items() for cls in wanted[name] if hasattr(m, cls)]
    return (*more, *found)
