"""A site's flow run that misses the Prefect server crashes and is followed by another; its own errors fail it."""

from typing import NoReturn

import pytest
from httpx import ConnectError
from prefect import flow, task
from prefect.states import State

from flows.server_away import crashes_without_server
from flows.site import failure, site_evaluate, site_round, site_start
from photon_core.errors import DataError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
SECRET = "https://user:hunter2@server"


def refused() -> NoReturn:
    """As Prefect raises it for a task whose slots it cannot ask for."""
    try:
        raise ConnectError(SECRET)
    except ConnectError as error:
        raise RuntimeError("Unable to acquire concurrency slots") from error


def ended(function) -> State:
    return flow(crashes_without_server(function))(return_state=True)


def test_an_unreachable_server_is_a_crash_without_its_words():
    state = ended(refused)
    assert state.is_crashed()
    assert state.message == "the Prefect server was unreachable: RuntimeError"
    assert SECRET not in str(state)


def test_a_step_that_misses_the_server_is_one_too():
    def steps():
        failure({"train": task(refused).submit()})

    assert ended(steps).is_crashed()


def test_an_error_of_its_own_is_a_failure():
    def broken():
        raise DataError("shard 3 is damaged")

    state = ended(broken)
    assert state.is_failed() and "shard 3 is damaged" in state.message


def test_all_flows_of_a_site_in_a_round_are_so():
    assert all(hasattr(one.fn, "__wrapped__") for one in (site_round, site_evaluate, site_start))
