"""The page of a tree: drawn from manifests, of a tree that was played, and of one that cannot be read whole."""

import csv
import io
from collections.abc import Iterator
from math import exp, log
from pathlib import Path

import pytest

from photon_core.evidence.links import links
from photon_core.evidence.record import read_record
from photon_core.evidence.tree import Tree, read_tree
from photon_core.report.node_rows import COLUMNS, node_csv
from photon_core.report.page import render
from photon_core.report.tree import link_table, node_table, route_table, tree_notes, tree_sections
from photon_core.run.run import forget_runs
from tests.chains import small_tree
from tests.photon_core.report.test_page import Elements
from tests.played import MODEL, Played
from tests.worlds import write_world


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Three rounds of a tree with two regions of two sites."""
    folder = tmp_path_factory.mktemp("tree")
    tree = Played(write_world(folder, root={"model": MODEL}, region={"model": MODEL}))
    tree.play(3)
    yield tree
    forget_runs()


def page_of(played: Played, tree: Tree) -> str:
    return render(read_record(played.run()), more=tree_sections(tree), remarks=tree_notes(tree))


def test_the_page_of_a_played_tree_loads_nothing_and_has_its_sections(played: Played) -> None:
    page = page_of(played, read_tree(played.world, {}))
    elements = Elements(page)
    assert "script" not in elements.names
    assert all(reference.startswith(("#", "data:")) or "url(#" in reference for reference in elements.references)
    assert len(elements.ids) == len(set(elements.ids))
    assert {"tree", "attention", "residuals", "links", "tree-nodes", "attention-blocks.1", "entropy"} <= {
        *elements.ids
    }
    assert "north/b" in page and "Weights of blocks.1" in page


def test_bytes_are_those_of_the_files(played: Played) -> None:
    """The sizes of all files that members have written."""
    found = {(link.above, link.member): link for link in links(read_tree(played.world, {}))}
    assert len(found) == 6 and all(link.rounds == 3 for link in found.values())
    for names, folder in (((), "world"), (("north",), "north"), (("south",), "south")):
        store = Path(played.run(*names).store.url.removeprefix("file://")) / folder
        for member in played.chain(*names)[-1].updates:
            files = list(store.glob(f"rounds/*/sites/{member}/0001/**/*.safetensors"))
            assert files and found[names, member].up == sum(file.stat().st_size for file in files)


def test_routes_of_a_played_tree_never_lead_home(played: Played) -> None:
    tree = read_tree(played.world, {})
    rows = [row.cells for row in route_table(tree).rows]
    assert rows and all(origin.split("/")[0] != receiver.split("/")[0] for *_, origin, receiver, _ in rows)


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(played: Played) -> None:
    tree = read_tree(played.world, {("south",): "the store does not answer"})
    page = page_of(played, tree)
    assert tree_notes(tree) == ["south cannot be read: the store does not answer"]
    assert page.count("the store does not answer") == 2, "above, and in a table"
    rows = {row.cells[0]: row for row in node_table(tree).rows}
    assert (rows["south"].mark, rows["south"].cells[-1], rows["south"].cells[1]) == ("bad", "cannot be read", "3")
    assert rows["south/c"].cells[1] == "–" and rows["north/a"].mark == ""
    assert {link.above for link in links(tree)} == {(), ("north",)}


def test_any_part_of_a_tree_has_a_page(played: Played) -> None:
    north = played.world.children["north"]
    sections = {section.id: section.shown() for section in tree_sections(read_tree(north, {}))}
    assert [picture.name for picture in sections["attention"].pictures] == ["attention-blocks.1", "entropy"]
    assert sections["links"].tables[0].rows[0].cells[0] == "north – a"


def test_before_the_first_round_only_the_nodes_are_there(tmp_path: Path) -> None:
    tree = small_tree(tmp_path, rounds={(): [], ("north",): [], ("south",): []}, sent={}, site_entries={})
    sections = {section.id: section.shown() for section in tree_sections(tree)}
    assert [picture.name for picture in sections["tree"].pictures] == ["tree-nodes"]
    assert all(sections[name].empty for name in ("attention", "residuals", "links"))


def test_figures_in_words(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    pictures = {p.name: p.alt for section in tree_sections(tree) for p in section.shown().pictures if p}
    assert pictures["tree-nodes"].startswith(
        "The tree of 7 nodes. world: round 2, perplexity 4.48; north: round 4"
    )
    assert "sites' own, mean 10.75" in pictures["tree-models"], "exp of (0.5 + 2 + 3 + 4) / 4"
    assert "north/b 7.389" in pictures["tree-sites"]
    assert "world 0.6931" in pictures["entropy"]
    assert link_table(tree).rows[-1].cells == ("all", "", "12.2 kB", "6.67 kB")


def test_curves_of_all_nodes_as_csv(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(node_csv(small_tree(tmp_path)))))
    assert tuple(rows[0]) == COLUMNS
    found = {(row["node"], row["round"]): row for row in rows}
    assert len(found) == len(rows) == 2 + 2 + 2 + 3 + 3
    north, b = found["north", "4"], found["north/b", "2"]
    assert [north[key] for key in ("kind", "root_round", "loss", "tokens", "steps")] == [
        "federation", "2", "2.25", "200", "3"
    ]  # fmt: skip
    assert float(north["own_weight"]) == 0.6
    assert float(north["entropy"]) == pytest.approx(-(0.6 * log(0.6) + 0.4 * log(0.4)))
    assert (b["kind"], b["root_round"], float(b["perplexity"])) == ("site", "1", pytest.approx(exp(2.0)))
    assert b["own_weight"] == b["received_loss"] == ""
