"""What each node of a tree has reached, from manifests: figures of federations and sites."""

from math import exp
from pathlib import Path
from typing import Any

import pytest

from photon_cli.tables import plain_console, tree_table
from photon_core.errors import PhotonError
from photon_core.evidence.nodes import mean_of_sites, reached, readable_rounds, unread
from schemas.manifests import ParentRef, RoundManifest
from schemas.reading.world import load_world
from tests.chains import manifest, update
from tests.worlds import write_world

SITES = {"north": {"a": 1.0, "b": 2.0}, "south": {"c": 3.0, "d": 4.0}}  # loss of each site's own model


def chain(run: str, losses: dict[str, float]) -> list[RoundManifest]:
    """Round 0, an entry, two rounds, and the entry for the parent's second round."""
    ref = ParentRef(store="s", run="world", round=1, sha256="0", member=run)
    sites = {site: update(100, 3, valid_loss=loss) for site, loss in losses.items()}
    early = {site: update(100, 3, valid_loss=9.0) for site in losses}
    return [
        manifest(run, 0),
        manifest(run, 1, kind="entry", parent=ref, entries=1),
        manifest(run, 2, updates=early, global_step=3, total_tokens=200, metrics={"loss": 8.0}, entries=1),
        manifest(run, 3, updates=sites, global_step=6, total_tokens=400, metrics={"loss": 2.5}, entries=1),
        manifest(
            run, 4, kind="entry", parent=ref.model_copy(update={"round": 2}), entries=2, global_step=6,
            total_tokens=400,
        ),
    ]  # fmt: skip


@pytest.fixture
def nodes(tmp_path: Path) -> list[Any]:
    world = load_world(write_world(tmp_path))
    members = {name: update(400, 6) for name in SITES}
    root = [
        manifest("world", 0),
        manifest("world", 1, updates=members, global_step=6, total_tokens=800, metrics={"loss": 2.0}),
    ]
    return reached(world, {(): root, ("north",): chain("north", SITES["north"]), ("south",): []})


def test_every_node_is_there_with_its_figures(nodes: list[Any]) -> None:
    assert [(node.name, node.round, node.steps, node.tokens) for node in nodes] == [
        ("world", 1, 6, 800), ("north", 4, 6, 400), ("north/a", 3, 6, 200), ("north/b", 3, 6, 200),
        ("south", None, 0, 0), ("south/c", None, 0, 0), ("south/d", None, 0, 0),
    ]  # fmt: skip
    world, north, a, *_, d = nodes
    assert (world.entered, north.entered.round, a.entered) == (None, 2, None)
    assert (world.perplexity, north.perplexity, a.perplexity) == (exp(2.0), exp(2.5), exp(1.0))
    assert d.facts() == {
        "node": "south/d", "site": True, "round": None, "entered": None, "perplexity": None,
        "steps": 0, "tokens": 0, "problem": "",
    }  # fmt: skip


def test_after_a_rollback_a_node_belongs_to_the_parents_earlier_round(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path))
    back = manifest("north", 5, kind="rollback", to=2, behind=[(3, 5)], entries=1, global_step=3, total_tokens=200)
    rounds = [*chain("north", SITES["north"]), back]
    found = {node.name: node for node in reached(world, {(): [], ("north",): rounds, ("south",): []})}
    assert found["north"].entered is not None and found["north"].entered.round == 1
    assert (found["north"].round, found["north"].steps, found["north/a"].steps) == (5, 3, 3)


def test_the_mean_of_sites_is_of_all_of_them_or_none(nodes: list[Any]) -> None:
    assert mean_of_sites(nodes, ("north",)) == pytest.approx(exp(1.5))
    assert mean_of_sites(nodes, ("south",)) is None and mean_of_sites(nodes, ()) is None


def test_the_table_is_indented_like_the_tree(nodes: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    plain_console(width=120).print(tree_table(nodes))
    rows = [line.rstrip() for line in capsys.readouterr().out.splitlines()[-7:]]
    assert rows[1].split() == ["north", "4", "2", "12.18", "4.48", "6", "400"]
    assert rows[2].split() == ["a", "3", "2.72", "6", "200"]
    assert [len(row) - len(row.lstrip()) for row in rows] == [0, 2, 4, 4, 2, 4, 4]


def test_an_update_of_a_member_whose_file_is_elsewhere_counts(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path))
    far = type(world)(world.federation, world.file, {})
    root = [manifest("world", 0), manifest("world", 1, updates={"north": update(400, 6)})]
    found = {node.name: node for node in reached(far, {(): root})}
    assert (found["north"].tokens, found["north"].steps, found["north"].loss) == (400, 6, None)
    assert not found["north"].is_site


def test_a_federation_that_cannot_be_read_is_there_as_its_parent_knows_it(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path))
    root = [manifest("world", 0), manifest("world", 1, updates={"north": update(400, 6)})]
    nodes = reached(world, {(): root, ("south",): []}, {("north",): "no answer"})
    found = {node.name: node for node in nodes}
    assert [node.name for node in nodes] == [
        "world", "north", "north/a", "north/b", "south", "south/c", "south/d"
    ]  # fmt: skip
    assert (found["north"].problem, found["north"].round, found["north"].tokens) == ("no answer", 1, 400)
    assert (found["north/a"].round, found["north/a"].tokens, found["north/a"].problem) == (None, 0, "")
    assert unread(nodes) == ["north cannot be read: no answer"]


def test_a_member_whose_file_is_lost_is_named(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    (tmp_path / "north.yaml").unlink()
    world = load_world(file, lenient=True)
    rounds, problems = readable_rounds(world, {})
    assert list(rounds) == [(), ("south",)] and problems == {}
    (north,) = [node for node in reached(world, rounds, problems) if node.name == "north"]
    assert "north.yaml' does not exist" in north.problem and not north.is_site


def test_a_store_that_cannot_be_read_is_an_error_of_the_first_federation_only(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    for name in ("north", "world"):
        (tmp_path / f"store-{name}" / name).mkdir(parents=True)
        (tmp_path / f"store-{name}" / name / "rounds").write_text("no folder")
    rounds, problems = readable_rounds(load_world(tmp_path / "south.yaml"), {})
    assert rounds == {(): []} and problems == {}
    with pytest.raises((PhotonError, OSError)):
        readable_rounds(load_world(file), {})
    (tmp_path / "store-world" / "world" / "rounds").unlink()
    rounds, problems = readable_rounds(load_world(file), {})
    assert list(problems) == [("north",)] and list(rounds) == [(), ("south",)]
