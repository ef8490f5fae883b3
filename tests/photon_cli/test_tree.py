"""A tree at the command line: every node is checked before any work, and named with its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from photon_cli.main import _names, app
from photon_cli.tree import check_places, check_sites, check_whole, look_at_world, read_world, sites_below
from photon_core.errors import DataError, FederationError
from tests.played import MODEL, Played
from tests.worlds import write_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """File of a root with the regions north (a, b) and south (c, d)."""
    return write_world(tmp_path)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def refused(file: Path, *command: str) -> str:
    """What the command says of the file on standard error, by its exception."""
    done = CliRunner().invoke(app, [*command, str(file)])
    assert isinstance(done.exception, FederationError | DataError), done.output
    return str(done.exception)


def test_sites_are_named_by_their_paths(world: Path) -> None:
    below = sites_below(read_world(world))
    assert list(below) == ["north/a", "north/b", "south/c", "south/d"]
    assert {path: view.federation.run for path, view in below.items()} == {
        "north/a": "north", "north/b": "north", "south/c": "south", "south/d": "south",
    }  # fmt: skip


def test_all_unprepared_sites_are_named_with_their_files(world: Path) -> None:
    with pytest.raises(DataError) as error:
        check_sites(read_world(world))
    folder = world.parent
    assert str(error.value) == (
        f"{folder}/north.yaml: not prepared yet: north/a, north/b\n"
        f"{folder}/south.yaml: not prepared yet: south/c, south/d. Write: photon prepare {world}"
    )


def test_sites_below_a_paused_member_need_nothing(world: Path) -> None:
    edit(world, lambda data: data["federations"][1].update(paused=True))
    with pytest.raises(DataError, match=r"north/b. Write") as error:
        check_sites(read_world(world))
    assert "south" not in str(error.value)


def test_wrong_places_are_named_with_the_file_that_has_them(world: Path, tmp_path: Path) -> None:
    (tmp_path / "store-south").write_text("no folder")
    with pytest.raises(FederationError, match=r"south\.yaml:\d+: store: .* cannot be a folder"):
        check_places(read_world(world))


def test_places_of_two_files_that_are_one_by_a_link_are_refused(world: Path, tmp_path: Path) -> None:
    check_places(read_world(world))
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "c").symlink_to(tmp_path / "sites" / "a")
    with pytest.raises(FederationError) as error:
        check_places(read_world(world))
    text = str(error.value)
    assert "south.yaml:" in text and "sites[c].state_dir" in text and "links resolved" in text
    assert f"sites[a].state_dir '{tmp_path}/sites/a' of {tmp_path}/north.yaml" in text


def test_a_member_whose_file_is_elsewhere_cannot_run_here(world: Path) -> None:
    edit(world, lambda data: data["federations"][1].pop("federation"))
    with pytest.raises(FederationError, match=r"world\.yaml:\d+: federations\[south\]\.federation: missing, and "):
        check_whole(read_world(world))
    edit(world, lambda data: data["federations"][1].update(paused=True))
    check_whole(read_world(world))


def test_two_nodes_with_one_run_cannot_run_in_one_process(world: Path, tmp_path: Path) -> None:
    edit(tmp_path / "south.yaml", lambda data: data.update(run="north"))
    with pytest.raises(FederationError, match=r"south\.yaml:1: run: 'north' is also the run of .*north\.yaml"):
        check_whole(read_world(world))


def test_two_blocks_of_credentials_are_refused(world: Path, tmp_path: Path) -> None:
    for name in ("north", "south"):
        storage = {"block": f"aws-credentials/{name}", "endpoint_url": "http://127.0.0.1:9"}
        edit(
            tmp_path / f"{name}.yaml", lambda data, storage=storage: data.update(store="s3://b/x", storage=storage)
        )
    with pytest.raises(
        FederationError, match=r"south\.yaml:\d+: storage\.block: 'aws-credentials/south', but 'aws"
    ):
        read_world(world)


@pytest.mark.parametrize("name", ["world.yaml", "north.yaml"])
@pytest.mark.parametrize(
    "command, instead",
    [
        (("rerun", "--round", "1", "--site", "a"), "photon run FILE, with the root's file"),
    ],
)
def test_commands_that_do_not_support_trees_say_what_to_do(
    command: tuple[str, ...], instead: str, name: str, world: Path
) -> None:
    key = "federations" if name == "world.yaml" else "parent"
    text = refused(world.parent / name, *command)
    assert f"{key}: photon {command[0]} does not support trees of federations yet; " in text and instead in text
    assert text.startswith(f"{world.parent / name}:")


def test_a_member_is_not_run_alone(world: Path) -> None:
    text = refused(world.parent / "north.yaml", "run")
    assert "parent: rounds of run 'world' start the rounds of this run; write photon run FILE" in text


def test_a_model_of_a_member_that_nobody_has_or_has_not_begun(world: Path) -> None:
    for command in (["export", "--to", "model"], ["generate", "--prompt", "x"], ["evaluate"]):
        text = refused(world, *command, "--member", "north/x")
        assert text.startswith("--member north/x: no member has this path; write one of: north, north/a, north/b,")
    done = CliRunner().invoke(app, ["export", "--to", "model", "--member", "north/a", str(world)])
    assert "run 'north' has no rounds in" in str(done.exception)


def test_prepare_names_the_paths_that_there_are(world: Path) -> None:
    text = refused(world, "prepare", "--site", "north/c")
    assert text == "--site north/c: no site has this name; write one of: north/a, north/b, south/c, south/d"


def test_prepare_of_own_sites_reads_no_file_below(write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    edit(file, lambda data: data.update(federations=[{"name": "far", "federation": "elsewhere.yaml"}]))
    assert list(sites_below(read_world(file, ["a"]))) == ["a", "b"]
    with pytest.raises(FederationError, match=r"elsewhere.yaml' does not exist"):
        read_world(file, ["far/x"])


def test_the_shell_completes_paths(world: Path, tmp_path: Path) -> None:
    assert _names(world) == ["north/a", "north/b", "south/c", "south/d"]
    edit(tmp_path / "north.yaml", lambda data: data.update(federations=[{"name": "up", "federation": world.name}]))
    assert _names(world)[:2] == ["north/a", "north/b"], "a circle ends"


def test_a_command_that_shows_a_tree_names_what_cannot_be_read(world: Path, tmp_path: Path) -> None:
    (tmp_path / "north.yaml").unlink()
    edit(tmp_path / "south.yaml", lambda data: data.update(store="unknown://far/south"))
    tree, problems = look_at_world(world)
    assert list(tree.lost) == ["north"] and list(problems) == [("south",)]
    assert "unknown://far/south" in problems["south",]


def test_a_command_that_shows_a_tree_needs_the_first_store(world: Path) -> None:
    edit(world, lambda data: data.update(store="unknown://far/world"))
    with pytest.raises(FederationError, match="unknown://far/world"):
        look_at_world(world)


def test_the_page_of_a_tree_has_its_curves_beside_it(world: Path, tmp_path: Path) -> None:
    for name in ("world", "north", "south"):
        edit(tmp_path / f"{name}.yaml", lambda data: data.update(model=MODEL))
    Played(world).play()
    edit(tmp_path / "south.yaml", lambda data: data.update(store="unknown://far/south"))
    page = tmp_path / "pages" / "world.html"
    for _ in range(2):
        done = CliRunner().invoke(app, ["report", str(world), "--to", str(page)], catch_exceptions=False)
        assert done.exit_code == 0 and f"curves of all nodes in {tmp_path}/pages/world.csv" in done.output
    assert "south cannot be read" in page.read_text() and 'id="attention-blocks.1"' in page.read_text()
    assert page.with_suffix(".csv").read_text().startswith("node,kind,root_round,round,loss")
    page.with_suffix(".csv").write_text("mine")
    assert "world.csv: is a file that photon did not write" in refused(world, "report", "--to", str(page))
    assert "write a name with .html" in refused(world, "report", "--to", "page.csv")


def test_the_status_of_a_tree_names_what_cannot_be_read(world: Path, tmp_path: Path) -> None:
    for name in ("world", "north", "south"):
        edit(tmp_path / f"{name}.yaml", lambda data: data.update(model=MODEL))
    Played(world).play()
    edit(tmp_path / "south.yaml", lambda data: data.update(store="unknown://far/south"))
    done = CliRunner().invoke(app, ["status", str(world)], catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "south cannot be read: " in done.output
    done = CliRunner().invoke(app, ["status", str(world), "--json"], catch_exceptions=False)
    nodes = {node["node"]: node for node in json.loads(done.output)["nodes"]}
    assert "unknown://far/south" in nodes["south"]["problem"] and nodes["south"]["round"] == 1
    assert nodes["north"]["problem"] == "" and nodes["north/a"]["round"] == 2
