"""A flow run of a site that cannot reach the Prefect server crashes instead of failing: a new one follows it."""

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
    """A flow's function whose errors of the connection to the server become the state Crashed.

    A failed flow run waits for a manual retry, but nobody can fix a server that was restarted. For Prefect, a task
    that cannot get its concurrency slots from the server has failed.
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
    """Raise the error of a task that ended because the server did not answer."""
    error = future.state.result(raise_on_failure=False)
    if isinstance(error, Exception) and is_server_away(error):
        raise error


def is_server_away(error: BaseException) -> bool:
    """Whether the error comes from a connection to the Prefect server."""
    return any(isinstance(layer, TransportError) for layer in chain(error))
