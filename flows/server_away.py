"""A flow run of a site that misses the Prefect server crashes, so that another follows it; it does not fail."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from httpx import TransportError
from prefect.futures import PrefectFuture
from prefect.states import Crashed, State

from schemas.server_errors import chain, told

Given = ParamSpec("Given")
Result = TypeVar("Result")


def crashes_without_server(function: Callable[Given, Result]) -> Callable[Given, Result | State]:
    """Of a flow's function: an error of the connection to the server becomes the state Crashed.

    A failed flow run waits for a person, who can do nothing about a server that was restarted. For Prefect it is
    a failure if a task cannot ask the server for its concurrency slots.
    """

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result | State:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not is_server_away(error):
                raise
            return Crashed(message=f"the Prefect server was unreachable: {told(error)}")

    return run


def raise_if_server_away(future: PrefectFuture) -> None:
    """Raise the error of a task that has ended without an answer of the server."""
    error = future.state.result(raise_on_failure=False)
    if isinstance(error, Exception) and is_server_away(error):
        raise error


def is_server_away(error: BaseException) -> bool:
    """Whether the error comes from a connection to the Prefect server."""
    return any(isinstance(layer, TransportError) for layer in chain(error))
