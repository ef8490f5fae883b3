"""photon plan of a tree: what it prints and writes."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from photon_cli.main import app
from photon_core.errors import FederationError
from tests.worlds import write_world


def run(*arguments: object) -> str:
    result = CliRunner().invoke(
        app, ["plan", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "140"}
    )
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A tree whose sites declare their hardware."""
    file = write_world(tmp_path, region={"worldlm": {"rounds": 2}})
    for name in ("north", "south"):
        data = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        data["sites"] = [site | {"hardware": {"tflops": 1}, "link": {"up": 1}} for site in data["sites"]]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def test_tables(world: Path) -> None:
    text = " ".join(run(world).split())
    assert "tree of run world: 3 federations with 4 sites" in text and "from what the sites declare" in text
    for part in ("north", "world – north", "north – a", "a round: ", "over all links; "):
        assert part in text
    assert "one flat federation of these sites would move" in text and "times as much (+" in text
    assert "no times" not in text


def test_json_is_what_the_tables_say(world: Path) -> None:
    facts = json.loads(run(world, "--json"))
    assert [node["node"] for node in facts["nodes"]] == ["world", "north", "south"]
    north = facts["nodes"][1]
    assert north["rounds_a_call"] == 2 and north["call_seconds"] == pytest.approx(2 * north["round_seconds"])
    assert facts["round_bytes"] == pytest.approx(
        sum(link["down_bytes"] + link["up_bytes"] for link in facts["links"])
    )
    assert facts["bytes_over_flat"] == pytest.approx(facts["round_bytes"] / facts["flat_round_bytes"])
    assert facts["round_seconds"] > north["call_seconds"] and facts["measured_round_seconds"] is None


def test_a_member_is_planned_for_a_call(world: Path) -> None:
    assert "a call of 2 rounds: " in run(world.parent / "north.yaml")


def test_what_is_unknown_is_said(world: Path) -> None:
    data = yaml.safe_load(world.read_text())
    del data["federations"][1]["federation"]
    world.write_text(yaml.safe_dump(data))
    assert "not in the plan, because the file is not here: what lies below south" in run(world)


def test_a_page_and_no_picture(world: Path, tmp_path: Path) -> None:
    run(world, "--to", tmp_path / "plan.html")
    run(world, "--to", tmp_path / "plan.html")
    assert "world – north" in (tmp_path / "plan.html").read_text()
    with pytest.raises(FederationError, match=r"plan\.svg: the plan of a tree has no picture; write .*\.html"):
        run(world, "--to", tmp_path / "plan.svg")
