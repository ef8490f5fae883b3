"""photon demo --world: the repository's example, on texts of which no two sites share a document."""

import json
from pathlib import Path

import pytest

from photon_cli import demo_world
from photon_cli.demo_world import ROUNDS, TREE, files_of, write_demo_world
from photon_core.errors import FederationError
from schemas.reading.world import load_world

EXAMPLE = Path(__file__).parents[2] / "examples" / "world"


def test_its_files_are_the_repositorys_example() -> None:
    assert {path.name: path.read_text("utf-8") for path in EXAMPLE.iterdir()} == files_of(ROUNDS)


def test_its_files_are_a_tree_with_a_named_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_world, "SITE_BYTES", 60_000)  # the whole texts take seconds
    world = load_world(write_demo_world(tmp_path))
    assert {names: tuple(site.name for site in node.federation.sites) for names, node in world.nodes()} == {
        (): (), **{(name,): sites for name, sites in TREE.items()}
    }  # fmt: skip
    for _, node in world.nodes():
        assert "recipe: unlike-sites" in Path(node.file).read_text() and node.federation.recipe == "unlike-sites"
    documents: list[str] = []
    for file in (tmp_path / "text").glob("*/*.jsonl"):
        mine = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        assert len(mine) >= 10 and sum(map(len, mine)) >= 60_000, file
        documents += mine
    assert len(documents) == len(set(documents))


def test_only_the_number_of_rounds_is_changed(tmp_path: Path) -> None:
    for site in ("prose/reference", "prose/docstrings", "prose/comments", "code/networking", "code/concurrency",
                 "code/tests"):  # fmt: skip
        path = tmp_path / "text" / f"{site}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    root = write_demo_world(tmp_path, 2)
    code = tmp_path / "code.yaml"
    code.write_text(code.read_text().replace("rounds: 2}", "rounds: 3}"))
    write_demo_world(tmp_path, 7)
    world = load_world(root)
    assert (world.federation.rounds.count, world.children["code"].rounds, world.children["prose"].rounds) == (
        7,
        3,
        2,
    )
    assert (tmp_path / "text" / "code" / "tests.jsonl").read_text() == "mine"
    code.write_text("run: other\n")
    with pytest.raises(
        FederationError, match=r"code\.yaml is not as the demo wrote it\. To continue, write: photon"
    ):
        write_demo_world(tmp_path, 9)
    assert code.read_text() == "run: other\n" and "count: 7" in root.read_text()
