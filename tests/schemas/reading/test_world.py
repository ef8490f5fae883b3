"""A tree of federations from its files: what belongs together is read, what does not is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from schemas.errors import FederationError
from schemas.reading.load import check_paths, load_federation
from schemas.reading.world import load_world
from tests.conftest import merge
from tests.federations import sections, site

Files = dict[str, dict[str, Any]]


def node(run: str, *sites: str, parent: str | None = None, **more: Any) -> dict[str, Any]:
    """A federation's file in a folder where all of a tree are; the parent's run and file have its name."""
    data = sections(
        run=run, store=f"stores/{run}", sites=[site(name) for name in sites], rounds={"count": 5}, recipe=None
    )
    if parent is not None:
        data |= {"rounds": {}, "parent": {"store": f"stores/{parent}", "run": parent, "member": run}}
    return merge(data, more)


def inner(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "federation": f"{name}.yaml"} for name in names]


def tree() -> Files:
    """A root with a site and two regions, one of which has its own region."""
    return {
        "world": node("world", "office", federations=inner("europe", "asia")),
        "europe": node("europe", "berlin", "lyon", parent="world", federations=inner("iberia")),
        "iberia": node("iberia", "porto", parent="europe"),
        "asia": node("asia", "osaka", parent="world"),
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], str]:
    """Writes a tree's files, and goes there."""
    monkeypatch.chdir(tmp_path)

    def files(tree: Files) -> str:
        for name, data in tree.items():
            Path(f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
        return "world.yaml"

    return files


def test_a_tree_is_read_from_its_files(write: Callable[[Files], str], tmp_path: Path) -> None:
    world = load_world(write(tree()))
    paths = {path: one.federation.run for path, one in world.nodes()}
    assert paths == {
        (): "world", ("europe",): "europe", ("europe", "iberia"): "iberia", ("asia",): "asia",
    }  # fmt: skip
    europe = world.children["europe"]
    assert (world.file, europe.file) == ("world.yaml", str(tmp_path / "europe.yaml"))
    assert europe.federation == load_federation("europe.yaml")
    assert europe.federation.parent and europe.federation.parent.store == str(tmp_path / "stores/world")
    assert load_world(europe.file) == europe, "any part of it is a tree"
    check_paths(world.federation, sites=[], file="world.yaml")


def test_a_flat_file_is_a_tree_of_one(write: Callable[[Files], str]) -> None:
    write({"world": node("world", "a")})
    assert [path for path, _ in load_world("world.yaml").nodes()] == [()]


def test_a_file_that_stays_with_its_federation_is_not_looked_for(write: Callable[[Files], str]) -> None:
    file = write({"world": node("world", "a", federations=[{"name": "europe"}])})
    world = load_world(file)
    assert (world.children, world.federation.active) == ({}, ["a", "europe"])
    check_paths(world.federation, sites=[], file=file)


def test_files_at_urls(write: Callable[[Files], str]) -> None:
    files = tree()
    files["world"]["federations"] = [{"name": "europe", "federation": "memory://tree/eu/europe.yaml"}]
    files["europe"]["parent"]["store"] = files["world"]["store"] = "memory://world"
    files["europe"]["federations"] = [{"name": "iberia", "federation": "../iberia.yaml"}]
    files["europe"]["store"] = files["iberia"]["parent"]["store"] = "memory://europe"
    write(files)
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/tree/eu/europe.yaml", Path("europe.yaml").read_bytes())
    remote.pipe_file("/tree/iberia.yaml", Path("iberia.yaml").read_bytes())
    europe = load_world("world.yaml").children["europe"]
    assert europe.children["iberia"].file == "memory://tree/iberia.yaml"
    assert europe.federation.sites[0].streams[0].source == "s.txt", (
        "it belongs to the machine that has the file on a disk"
    )
    remote.rm_file("/tree/iberia.yaml")
    missing = r"europe\.yaml: federations\[iberia\]\.federation: 'memory://tree/iberia\.yaml' does not exist"
    with pytest.raises(FederationError, match=missing):
        load_world("world.yaml")


def test_the_model_s_preset_counts_by_its_values(write: Callable[[Files], str]) -> None:
    model = {"preset": "125M", "n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 257}
    files = tree()
    files["asia"] = merge(files["asia"], {"recipe": None, "model": model})
    assert load_world(write(files)).children["asia"].federation.model.preset == "125M"


def test_copies_of_a_tokenizer_are_one(write: Callable[[Files], str]) -> None:
    files = tree()
    for name in files:
        files[name]["tokenizer"] = f"{name}.json"
        Path(f"{name}.json").write_text("{}")
    load_world(write(files))
    Path("asia.json").write_text("{ }")
    with pytest.raises(FederationError, match=r"asia\.yaml:3: tokenizer: '.*asia\.json', but '.*world\.json' in"):
        load_world("world.yaml")


def test_the_seed_may_differ(write: Callable[[Files], str]) -> None:
    files = tree()
    files["asia"]["seed"] = 18
    load_world(write(files))


def change(name: str, **more: Any) -> Files:
    files = tree()
    files[name] = merge(files[name], more)
    return files


def without(name: str, key: str) -> Files:
    files = tree()
    del files[name][key]
    return files


def with_parent(**more: Any) -> Files:
    return change("asia", parent=more)


S3 = {"store": "s3://b/w", "storage": {"endpoint_url": "http://one"}}
WRONG: list[tuple[str, Files, str]] = [
    ("a member's file is missing", change("world", federations=inner("europe", "africa")),
     "world.yaml:24: federations[africa].federation: '{folder}/africa.yaml' does not exist; write the path or "
     "URL of its file, or drop it: then the member's file stays with the member"),
    ("a circle", change("iberia", federations=[{"name": "all", "federation": "europe.yaml"}]),
     "{folder}/iberia.yaml:25: federations[all].federation: is above this file ({folder}/europe.yaml -> "
     "{folder}/iberia.yaml -> {folder}/europe.yaml), and a tree has no cycle; drop the member"),
    ("the file itself", change("world", federations=[{"name": "all", "federation": "./world.yaml"}]),
     "world.yaml:22: federations[all].federation: is above this file ({folder}/world.yaml -> "
     "{folder}/world.yaml), and a tree has no cycle; drop the member"),
    ("two parents", change("asia", federations=inner("iberia")),
     "{folder}/asia.yaml:25: federations[iberia].federation: is listed in {folder}/europe.yaml, and a federation "
     "has one parent; drop it from one"),
    ("no parent", without("iberia", "parent") | {"iberia": node("iberia", "porto")},
     "{folder}/iberia.yaml:1: parent: missing, but run 'europe' lists it as 'iberia'; write parent: {{store: "
     "{folder}/stores/europe, run: europe, member: iberia}}"),
    ("a parent of another run", with_parent(run="europe"),
     "{folder}/asia.yaml:21: parent.run: 'europe', but run 'world' lists it as 'asia'; write world"),
    ("a parent in another store", with_parent(store="elsewhere"),
     "{folder}/asia.yaml:20: parent.store: '{folder}/elsewhere', but run 'world' lists it as 'asia' in another "
     "store; write {folder}/stores/world"),
    ("another member of the parent", with_parent(member="asien"),
     "{folder}/asia.yaml:22: parent.member: 'asien', but run 'world' lists it as 'asia'; write asia"),
    ("a parent's store on another server",
     change("world", **S3, federations=inner("asia")) | {"asia": node("asia", "osaka", parent="world") | {
         "parent": {**S3, "storage": {"endpoint_url": "http://two"}, "run": "world", "member": "asia"}}},
     "{folder}/asia.yaml:22: parent.storage.endpoint_url: not the server of the store where run 'world' lists it "
     "as 'asia'; write http://one"),
    ("another model", change("iberia", model={"expansion_ratio": 2}),
     "{folder}/iberia.yaml:9: model.expansion_ratio: 2, but 4 in run 'europe', its parent, and a tree has one "
     "model; write 4"),
    ("another tokenizer", change("asia", tokenizer="gpt2"),
     "{folder}/asia.yaml:3: tokenizer: 'gpt2', but 'bytes' in run 'world', its parent, and a tree has one "
     "tokenizer; write that"),
    ("other key layers", change("world", worldlm={"key_layers": 1}),
     "{folder}/europe.yaml:1: worldlm.key_layers: 0.3, but 1 in run 'world', its parent, and a tree has the same; "
     "write 1"),
    ("a name twice on a path", change("iberia", sites=[site("europe")]),
     "{folder}/iberia.yaml:14: sites[europe].name: 'europe' occurs twice on the path europe/iberia/europe; give "
     "it another name"),
    ("two runs of one name in one store", change("asia", run="iberia", store="stores/europe") |
     {"iberia": node("iberia", "porto", parent="europe") | {"store": "stores/europe"}},
     "{folder}/asia.yaml:1: run: the run's folder '{folder}/stores/europe/iberia' is "
     "'{folder}/stores/europe/iberia', that of {folder}/iberia.yaml; write another run, or another store"),
    ("a run within another's folder", change("asia", store="stores/europe/europe"),
     "{folder}/asia.yaml:1: run: the run's folder '{folder}/stores/europe/europe/asia' lies in "
     "'{folder}/stores/europe/europe', that of {folder}/europe.yaml; write another run, or another store"),
    ("two sites with one private folder", change("asia", sites=[
        site("o", state_dir="photon-sites/europe/berlin")]),
     "{folder}/asia.yaml:18: sites[o].state_dir: '{folder}/photon-sites/europe/berlin' is "
     "sites[berlin].state_dir '{folder}/photon-sites/europe/berlin' of {folder}/europe.yaml; Photon writes and "
     "removes files there: write places that do not contain each other"),
    ("a store in another's text", change("asia", sites=[{"name": "o", "streams": [
        {"name": "s", "source": "stores/europe/x.txt"}]}]),
     "{folder}/europe.yaml:2: store: '{folder}/stores/europe' holds sites[o].streams[s].source "
     "'{folder}/stores/europe/x.txt' of {folder}/asia.yaml; Photon writes and removes files there: write places "
     "that do not contain each other"),
    ("an end of the schedule that comes early", change("iberia", worldlm={"rounds": 2}),
     "world.yaml:11: local.schedule.total_steps: missing, and would be rounds.count x local.steps, but a round of "
     "this tree has 20 steps, not 10; write 100"),
    ("the same of a member alone", merge(
        change("iberia", worldlm={"rounds": 2}), {"world": {"local": {"schedule": {"name": "constant"}}}}),
     "world.yaml:14: local.schedule.total_steps: missing, and would be rounds.count x local.steps, but a round of "
     "this tree has 20 steps, not 10; write 100"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_refused(files: Files, message: str, write: Callable[[Files], str], tmp_path: Path) -> None:
    with pytest.raises(FederationError) as caught:
        load_world(write(files))
    assert str(caught.value) == message.format(folder=tmp_path)


def test_a_lenient_reader_names_the_files_that_it_could_not_read(write: Callable[[Files], str]) -> None:
    files = tree()
    files["asia"]["rounds"] = {"count": "many"}
    file = write(files)
    Path("iberia.yaml").unlink()
    world = load_world(file, lenient=True)
    assert list(world.children) == ["europe"] and list(world.lost) == ["asia"]
    assert "asia.yaml" in world.lost["asia"] and "rounds.count" in world.lost["asia"]
    assert "does not exist" in world.children["europe"].lost["iberia"]
    with pytest.raises(FederationError):
        load_world(file)


def test_a_lenient_reader_still_refuses_a_circle(write: Callable[[Files], str]) -> None:
    files = tree()
    files["iberia"]["federations"] = [{"name": "eu", "federation": "europe.yaml"}]
    with pytest.raises(FederationError, match="a tree has no cycle"):
        load_world(write(files), lenient=True)
