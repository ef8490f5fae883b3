"""The models and bytes that benchmarks.worldlm reads from the stores of a finished run."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.worldlm_models import federations, moved, newest_trained, received, trained
from photon_core.run.run import forget_runs
from tests.conftest import merge
from tests.played import MODEL, Played, tensors
from tests.worlds import write_world

Play = Callable[..., Played]
PLAIN = {"worldlm": {"key_layers": 0}}
AVERAGE = {"server": {"optimizer": "fedavg", "lr": 1.0}}


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A tree of these regions after two rounds of the root."""

    def make(regions: Mapping[str, tuple[str, ...]], worldlm: Mapping[str, Any]) -> Played:
        sections = merge({"model": MODEL}, dict(worldlm))
        tree = Played(write_world(tmp_path, regions, root=merge(sections, AVERAGE), region=sections))
        tree.play(2)
        return tree

    yield make
    forget_runs()


def loaded(files: list[Path]) -> dict[str, np.ndarray]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_the_only_site_of_a_plain_mean_has_trained_its_regions_model(play: Play, tmp_path: Path) -> None:
    tree = play({"north": ("a",), "south": ("b",)}, PLAIN)
    found, own = trained(tree.world, tmp_path / "trained"), federations(tree.world)
    assert equal(loaded(found["a"]), loaded(own["north"])) and equal(loaded(found["b"]), loaded(own["south"]))
    assert not equal(loaded(found["a"]), loaded(found["b"]))


def test_without_key_layers_every_site_receives_the_roots_model(play: Play, tmp_path: Path) -> None:
    tree = play({"north": ("a", "b"), "south": ("c",)}, PLAIN)
    root = loaded(federations(tree.world)["world"])
    assert equal(root, tensors(tree.run(), tree.run().files_dir(2), tree.chain()[2].model))
    found = received(tree.world, tmp_path / "scratch")
    assert sorted(found) == ["a", "b", "c"] and all(equal(loaded(files), root) for files in found.values())


def test_with_key_layers_a_site_receives_what_the_next_round_starts_from(play: Play, tmp_path: Path) -> None:
    tree = play({"north": ("a", "b"), "south": ("c", "d")}, {"worldlm": {"key_layers": 1}})
    back, last = loaded(trained(tree.world, tmp_path / "trained")["a"]), newest_trained(tree.world).round
    found, root = loaded(received(tree.world, tmp_path / "scratch")["a"]), loaded(federations(tree.world)["world"])
    shared = {name for name in root if not name.startswith("blocks.1.")}
    assert all(np.array_equal(found[name], root[name]) for name in shared)
    key = "blocks.1.attn.Wqkv.weight"
    assert not np.array_equal(found[key], root[key]) and not np.array_equal(found[key], back[key])
    entry = tree.chain("north")[-1]
    assert entry.kind == "entry" and entry.parent is not None and entry.parent.round == last + 1
    tree.play()
    assert tree.chain("north")[entry.round] == entry and newest_trained(tree.world).round == last + 1


def test_at_temperature_0_a_sites_key_layers_are_those_that_it_trained(play: Play, tmp_path: Path) -> None:
    tree = play(
        {"north": ("a", "b"), "south": ("c", "d")},
        {"worldlm": {"key_layers": 1, "temperature": 0, "residuals": "off"}},
    )
    back, found = trained(tree.world, tmp_path / "trained"), received(tree.world, tmp_path / "scratch")
    for site in "abcd":
        mine, theirs = loaded(found[site]), loaded(back[site])
        assert all(np.array_equal(mine[n], theirs[n]) for n in mine if n.startswith("blocks.1."))


def test_bytes_are_those_of_the_files(play: Play) -> None:
    tree = play({"north": ("a", "b"), "south": ("c",)}, PLAIN)
    found = {"world": 0, "north": 0, "south": 0}
    for run, path, members in (("world", (), 2), ("north", ("north",), 2), ("south", ("south",), 1)):
        rounds = tree.file.parent / f"store-{run}" / run / "rounds"
        for t in (manifest.round for manifest in tree.chain(*path) if manifest.updates):
            found[run] += members * size(rounds / f"{t - 1:06d}" / "model") + size(rounds / f"{t:06d}" / "sites")
    assert found["world"] and found["north"] > found["south"] > 0
    assert moved(tree.world) == {"regions": found["world"], "sites": found["north"] + found["south"]}


def size(folder: Path) -> int:
    """Bytes of tensors in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
