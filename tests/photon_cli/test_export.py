"""photon export and photon generate of a tree's nodes: what is written, and what its card says."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from photon_cli.main import app
from photon_core.errors import FederationError, PhotonError
from tests.played import MODEL, Played
from tests.worlds import write_world


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Played:
    file = write_world(tmp_path_factory.mktemp("world"), root={"model": MODEL}, region={"model": MODEL})
    played = Played(file)
    played.play(2)
    return played


def photon(*command: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, command)])


def card(tree: Played, folder: Path, *options: str) -> str:
    done = photon("export", tree.file, "--quiet", "--to", folder, *options)
    assert done.exit_code == 0, done.exception
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "options, title, node, state",
    [
        ([], "world, round 2", "`world`, a federation", "committed in round 2 of run `world`"),
        (["--trained"], "world, round 2", "`world`, a federation", "committed in round 2 of run `world`"),
        (["--member", "north"], "north, round 4", "`north`, a federation",
         "as received: the model with which it would enter round 3 of run `world`"),
        (["--member", "north", "--trained"], "north, round 4", "`north`, a federation",
         "as trained: the result of round 4 of run `north`"),
        (["--member", "north/a"], "north/a, round 4", "`north/a`, a site",
         "as received: the model with which it enters round 5 of run `north`"),
        (["--member", "north/a", "--trained", "--round", "2"], "north/a, round 2", "`north/a`, a site",
         "as trained: the result of its local steps in round 2 of run `north`, bit for bit"),
    ],
)  # fmt: skip
def test_the_card_says_which_node_and_which_state(
    options: list[str], title: str, node: str, state: str, tree: Played, tmp_path: Path
) -> None:
    text = card(tree, tmp_path / "model", *options)
    assert f"\n# {title}\n" in text
    assert f"| node | {node} |\n| state | {state} |\n" in text
    assert "Its key layers (blocks.1) are that node's" in text
    assert ("Other federations of the tree have trained the model, too" in text) == ("--member" in options)


def test_the_models_of_nodes_differ_and_can_be_loaded(tree: Played, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    choices = {"root": [], "site": ["--member", "north/a"], "trained": ["--member", "north/a", "--trained"]}
    for name, options in choices.items():
        card(tree, tmp_path / name, *options)
    files = {name: (tmp_path / name).glob("*.safetensors") for name in choices}
    found = {name: {k: v for file in of for k, v in load_file(file).items()} for name, of in files.items()}
    key, shared = "transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"
    assert found["root"].keys() == found["site"].keys() == found["trained"].keys()
    assert (found["root"][shared] != found["trained"][shared]).any()
    assert (found["root"][key] != found["site"][key]).any() and (found["site"][key] != found["trained"][key]).any()


@pytest.mark.slow
def test_text_from_a_site(tree: Played) -> None:
    asked = ["generate", tree.file, "--prompt", "The", "--tokens", "5", "--temperature", "0"]
    done = photon(*asked, "--member", "south/d", "--trained")
    assert done.exit_code == 0 and done.output.startswith("The"), done.exception
    done = photon(*asked[:-4], "--tokens", "16", "--member", "south/d")
    assert isinstance(done.exception, FederationError)
    assert str(done.exception) == "--tokens 16: the model has 16 positions; write at most 15"


def test_what_no_round_has_and_places_that_are_taken(tree: Played, tmp_path: Path) -> None:
    done = photon("export", tree.file, "--to", tmp_path / "m", "--member", "north", "--round", "2")
    assert isinstance(done.exception, FederationError)
    assert "round 2 of run 'north' is not an entry" in str(done.exception)
    done = photon("export", tree.file, "--to", tmp_path / "m", "--member", "north/a", "--round", "7")
    assert isinstance(done.exception, PhotonError) and "round 7 of run 'north' is not committed" in str(
        done.exception
    )
    assert not (tmp_path / "m").exists()
    for place in ("store-north/model", "store-world/model"):
        done = photon("export", tree.file, "--to", tree.file.parent / place, "--member", "north")
        assert "which is for Photon's own files" in str(done.exception)
