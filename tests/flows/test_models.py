"""The models of a trained tree: what its sites have trained from and had, with the losses that they reported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from photon_cli.main import app
from photon_core.errors import DataError
from photon_core.export.node import find_node
from photon_core.export.states import node_model
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.reading.world import World
from schemas.view import view_of
from tests.worlds import prepare_world, write_world

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> World:
    """A tree with two rounds of two rounds each; north and south have two sites each."""
    from flows.federated_run import federated_run

    request.getfixturevalue("prefect_server")
    region = {"worldlm": {"rounds": 2}, "local": {"evaluate": True}}
    found = prepare_world(write_world(tmp_path_factory.mktemp("models"), region=region))
    federated_run(found.federation)
    return found


def evaluated(world: World, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["evaluate", world.file, "--json", *options])
    assert done.exit_code == 0, done.exception
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_as_received_is_what_the_site_trained_from_in_its_next_round(world: World, tmp_path: Path) -> None:
    run = run_of(world.children["north"].federation)
    for t in (2, 3, 5, 6):
        for name in "ab":
            update = run.update(t, name, 1)
            assert update is not None and update.entry_sha256
            found = node_model(find_node(world, f"north/{name}"), False, t - 1, tmp_path / f"{name}-{t}")
            assert found.source.sha256 == update.entry_sha256


def test_the_roots_model_has_the_loss_of_its_last_round(world: World) -> None:
    last, facts = history(run_of(world.federation))[-1], evaluated(world)
    assert facts["loss"] == pytest.approx(last.metrics["loss"], rel=1e-5)
    assert facts["perplexity"] == pytest.approx(last.metrics["perplexity"], rel=1e-5)
    assert facts["tokens"] == sum(scores["tokens"] for scores in last.evaluations.values())
    assert [leaf["node"] for leaf in facts["leaves"]] == ["north/a", "north/b", "south/c", "south/d"]
    assert (facts["node"], facts["state"], facts["round"], facts["missing"]) == ("world", "committed", 2, [])
    assert facts["model_sha256"] == last.model_sha256


def test_a_region_has_the_losses_of_its_last_trained_round(world: World) -> None:
    last = history(run_of(world.children["south"].federation))[-1]
    facts = evaluated(world, "--member", "south", "--trained")
    assert {leaf["node"]: leaf["loss"] for leaf in facts["leaves"]} == {
        f"south/{name}": pytest.approx(scores["loss"], rel=1e-5) for name, scores in last.evaluations.items()
    }


def test_a_federation_is_evaluated_by_its_own_file_too(world: World) -> None:
    north = world.children["north"]
    last, facts = history(run_of(north.federation))[-1], evaluated(north)
    assert facts["loss"] == pytest.approx(last.metrics["loss"], rel=1e-5)
    assert [leaf["node"] for leaf in facts["leaves"]] == ["a", "b"]
    assert (facts["node"], facts["run"], facts["round"], facts["state"]) == ("north", "north", 6, "committed")
    assert evaluated(north, "--member", "a", "--round", "5")["round"] == 5


def test_a_site_as_trained_has_the_loss_that_its_trainer_measured(world: World) -> None:
    update = run_of(world.children["north"].federation).update(6, "a", 1)
    assert update is not None
    facts = evaluated(world, "--member", "north/a", "--trained")
    assert facts["loss"] == pytest.approx(update.metrics["valid_loss"], rel=1e-5)
    assert (facts["node"], facts["site"], facts["round"]) == ("north/a", True, 6)
    received = evaluated(world, "--member", "north/a")
    assert received["state"] == "received" and received["loss"] != facts["loss"]


def test_leaves_without_text_here_are_named(world: World) -> None:
    views = [view_of(world.children["south"].federation, name) for name in "cd"]
    aside = [view.data_dir.with_name("aside") for view in views]
    for view, place in zip(views, aside, strict=True):
        shutil.move(view.data_dir, place)
    try:
        facts = evaluated(world)
        assert [leaf["node"] for leaf in facts["leaves"]] == ["north/a", "north/b"]
        why = "its shards are not on this machine"
        assert facts["missing"] == [{"node": f"south/{name}", "reason": why} for name in "cd"]
        shown = CliRunner().invoke(app, ["evaluate", world.file, "--quiet"]).output
        assert f"not evaluated: south/c ({why})" in shown and "\nall " in shown
        done = CliRunner().invoke(app, ["evaluate", world.file, "--member", "south"])
        assert isinstance(done.exception, DataError)
        assert str(done.exception).startswith(
            "there is no text to evaluate 'south' on: south/c: its shards are not"
        )
    finally:
        for view, place in zip(views, aside, strict=True):
            shutil.move(place, view.data_dir)
