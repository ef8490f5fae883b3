"""The file that a deployed round works with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.federation import Federation
from schemas.reading.load import load_federation
from tests.conftest import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_the_rounds_of_a_run_that_was_started_with_a_file_of_its_own_keep_it(
    write_federation: Callable[..., Path],
) -> None:
    """Those of a run with the deployed file follow an edit, also one between the run's look and the round's."""
    from prefect import flow

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.present import Present

    federation = load_federation(write_federation(("a",), pools={"a": "present"}, run="present"))
    own, edited = (
        Federation.model_validate(merge(federation.model_dump(), {"local": {"optimizer": {"lr": lr}}}))
        for lr in (0.5, 0.25)
    )
    apply(plan(federation))

    @flow
    def inner(given: Federation) -> Federation:
        return Present(given, follow=True).look(fresh=True)

    @flow
    def outer(given: Federation) -> Federation:
        present = Present(given, follow=True)
        apply(plan(edited if given == federation else federation))
        return inner(present.federation)

    assert outer(federation) == edited
    assert outer(own) == own
    assert outer(federation) == edited
