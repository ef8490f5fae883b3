"""Whatever a member brings as key layers, the round names it and goes on without it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from photon_core.errors import CorruptFile
from photon_core.run import garbage
from photon_core.run.garbage import Rule
from photon_core.run.run import Run, forget_runs
from photon_core.store.store import Store
from schemas.bounds import POOL_LIMIT
from schemas.manifests import Attention, FileEntry, Residual, RoundManifest
from schemas.view import view_of
from tests.federations import sections, site
from tests.played import MODEL, Played, put, tensors

EVIL = "b"
Change = Callable[["Attack"], dict[str, Any]]


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[Callable[..., Played]]:
    """A federation of four sites; keywords are its `worldlm`."""

    def make(worldlm: dict[str, Any] | None) -> Played:
        sites = [site(name, state_dir=str(tmp_path / name)) for name in "abcd"]
        data = sections(store=str(tmp_path / "store"), model=MODEL, recipe=None, sites=sites, worldlm=worldlm)
        file = tmp_path / "federation.yaml"
        file.write_text(yaml.safe_dump(data | {"rounds": {"count": 9, "quorum": 1}}))
        return Played(file)

    yield make
    forget_runs()


class Attack:
    """An update for round 2 before it is committed: its files are in the store.

    Attributes:
        arrays: of its key layers.
        folder: its place.
    """

    def __init__(self, tree: Played) -> None:
        self.tree, self.run = tree, tree.run()
        self.update = tree.update(self.run, view_of(tree.world.federation, EVIL), 2, 1)
        self.folder = self.run.site_dir(2, EVIL, 1)
        with_files = self.update.key_layers
        self.arrays = tensors(self.run, self.folder, with_files) if with_files else {}

    def layers(self, change: Callable[[str, np.ndarray], np.ndarray | None]) -> dict[str, Any]:
        """Key layers of other values."""
        changed = {name: change(name, values) for name, values in self.arrays.items()}
        arrays = {name: values.astype(np.float32) for name, values in changed.items() if values is not None}
        return {"key_layers": put(self.run, self.folder, arrays, "blocks.1-")}

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Key layers whose file is said to be another."""
        first, *others = self.update.key_layers
        return {"key_layers": [first.model_copy(update=changes), *others]}


def second(tree: Played) -> RoundManifest:
    """The round that is attacked: the hostile site's update is as it is."""
    return tree.round(tree.world.federation, 2, absent=(EVIL,))


def scaled(factor: float) -> Change:
    return lambda a: a.layers(lambda _, values: values * factor)


def filled(value: float) -> Change:
    return lambda a: a.layers(lambda _, values: np.full_like(values, value))


def spoiled(a: Attack) -> dict[str, Any]:
    return a.layers(lambda name, values: values * (np.nan if name.endswith("Wqkv.bias") else 1))


def fewer(a: Attack) -> dict[str, Any]:
    return a.layers(lambda name, values: None if name.endswith("Wqkv.bias") else values)


def more(a: Attack) -> dict[str, Any]:
    return {"key_layers": a.update.key_layers + put(a.run, a.folder, {"blocks.9.x": np.zeros(3, np.float32)})}


def backbone_too(a: Attack) -> dict[str, Any]:
    arrays = a.arrays | {"wte.weight": np.zeros((257, 8), np.float32)}
    return {"key_layers": put(a.run, a.folder, arrays, "blocks.1-")}


def turned(a: Attack) -> dict[str, Any]:
    return a.layers(lambda _, values: values.T)


def of_another(a: Attack) -> dict[str, Any]:
    """Its folder holds no such file; another site's does."""
    path = a.tree.run().update(1, "a", 1).key_layers[0].path
    return a.entry(path=f"../../a/0001/{path}")


def removed(a: Attack) -> dict[str, Any]:
    a.run.store.discard(f"{a.folder}/{a.update.key_layers[0].path}")
    return {}


def cut(a: Attack) -> dict[str, Any]:
    path = Path(a.run.store.url) / a.folder / a.update.key_layers[0].path
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-8])
    return {}


def many_files(a: Attack) -> dict[str, Any]:
    empty = a.update.key_layers[0].model_copy(update={"tensors": {}})
    return {"key_layers": [*a.update.key_layers, *(empty.model_copy(update={"path": f"{n}"}) for n in range(99))]}


CASES: dict[str, tuple[Change, str]] = {
    "NaN": (spoiled, "tensor 'blocks.1.attn.Wqkv.bias' of the key layer in .* holds NaN or Inf"),
    "infinity": (filled(np.inf), "holds NaN or Inf"),
    "10^6 times as large": (scaled(1e6), "its key layers have distance .* over 10 times the sites' median"),
    "as large as can be": (filled(3e38), "its key layers have distance .* over 10 times the sites' median"),
    "none": (lambda a: {"key_layers": []}, "tensor 'blocks.1.attn.Wqkv.bias' is missing"),
    "a tensor missing": (fewer, "tensor 'blocks.1.attn.Wqkv.bias' is missing"),
    "a tensor too many": (more, "tensor 'blocks.9.x' is not one of the model's key layers"),
    "the backbone": (backbone_too, "tensor 'wte.weight' is not one of the model's key layers"),
    "another shape": (turned, "is not one of the model's key layers as float32"),
    "twice": (lambda a: {"key_layers": [*a.update.key_layers] * 2}, "is in two files"),
    "another site's": (of_another, "is not a path inside the store"),
    "another hash": (lambda a: a.entry(sha256="0" * 64, blake3=""), "does not have the sha256"),
    "no hash": (lambda a: a.entry(sha256="../x"), "has no sha256 or blake3"),
    "10^15 bytes": (lambda a: a.entry(bytes=10**15), "has 1000000000000000 bytes, but its tensors have"),
    "a file that is gone": (removed, "is missing"),
    "a file that is cut": (cut, "ends before byte|its manifest says"),
    "many files": (many_files, "it brings 100 files"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_key_layers_are_left_out_by_name(flat: Callable[..., Played], case: str) -> None:
    tree, (change, reason) = flat({}), CASES[case]
    tree.play()
    attack = Attack(tree)
    tree.run().commit_update(attack.update.model_copy(update=change(attack)))
    found = second(tree)
    assert set(found.left_out) == {EVIL} and set(found.updates) == {"a", "c", "d"}
    assert re.search(reason, found.left_out[EVIL]), found.left_out[EVIL]
    assert found.attention["blocks.1"].rows == ["own", "a", "c", "d"]
    assert found.metrics["model_norm"] < 2 * tree.run().round(0).metrics["model_norm"]


@pytest.mark.parametrize("attention", ["cosine", "mean", "dot"])
def test_huge_values_stop_no_round_whatever_the_attention(flat: Callable[..., Played], attention: str) -> None:
    tree = flat({"attention": attention})
    tree.play()
    attack = Attack(tree)
    tree.run().commit_update(attack.update.model_copy(update=filled(3.4e38)(attack)))
    assert set(second(tree).left_out) == {EVIL}


def test_key_layers_of_a_run_that_has_none_are_refused(flat: Callable[..., Played]) -> None:
    tree = flat(None)
    tree.play()
    attack = Attack(tree)
    layer = put(attack.run, attack.folder, {"blocks.0.norm_1.bias": np.zeros(8, np.float32)})
    tree.run().commit_update(attack.update.model_copy(update={"key_layers": layer}))
    assert "tensor 'blocks.0.norm_1.bias' is not one of the model's key layers" in second(tree).left_out[EVIL]


def test_a_file_that_cannot_be_read_is_looked_at_again_alone(
    flat: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a key layer fails as a disk does: its site is left out, with what was met."""
    tree = flat({})
    tree.play()
    attack = Attack(tree)
    tree.run().commit_update(attack.update)
    bad, looks = f"{attack.folder}/{attack.update.key_layers[0].path}", list[str]()
    check, ranges = Store.check, Store.open_ranges

    def failing(store: Store, entry: FileEntry, folder: str, *more: Any) -> None:
        looks.append(f"{folder}/{entry.path}")
        if looks[-1] == bad:
            raise OSError(5, "broken on purpose")
        check(store, entry, folder, *more)

    def failing_ranges(store: Store, path: str) -> Any:
        if path == bad:
            raise OSError(5, "broken on purpose")
        return ranges(store, path)

    monkeypatch.setattr(Store, "check", failing)
    monkeypatch.setattr(Store, "open_ranges", failing_ranges)
    found = second(tree)
    assert set(found.left_out) == {EVIL} and "broken on purpose" in found.left_out[EVIL]
    assert bad in looks


def test_garbage_collection_believes_no_residual_about_others_files(flat: Callable[..., Played]) -> None:
    """A site says of round 0's model, which is kept, that it is a residual of round 2, which is not."""
    tree = flat({"key_layers": 1})
    tree.play()
    attack, base = Attack(tree), tree.run().round(0)
    evil = Residual(layer="blocks.1", origin=[EVIL], born=1, folder=tree.run().round_dir(0), files=base.model)
    tree.run().commit_update(attack.update.model_copy(update={"residuals": [evil]}))
    second(tree)
    tree.play(2)
    run = Run(tree.run().store, tree.run().run)
    garbage.remove(run, garbage.look(run, Rule(last=1, every=4), 1e12))
    for file in base.model:
        run.store.check(file, run.round_dir(0))


def test_a_pool_may_have_as_many_rows_as_a_round_has_members() -> None:
    rows = [f"site-{n}" for n in range(5001)]
    found = Attention(rows=rows, scores=[0.0] * 5001, weights=[0.0] * 5001, tau=1.0)
    assert len(found.rows) <= POOL_LIMIT


def test_an_update_s_manifest_stays_short_however_many_entries_it_claims(flat: Callable[..., Played]) -> None:
    tree = flat({})
    tree.play()
    attack = Attack(tree)
    claim = Attention(rows=["own"] * 1000, scores=[1.0] * 1000, weights=[1.0] * 1000, tau=1.0)
    many = attack.update.model_copy(update={"entry": {f"blocks.{n}": claim for n in range(200)}})
    tree.run().commit_update(many)
    found = second(tree)
    assert set(found.left_out) == {EVIL} and "at most" in found.left_out[EVIL]
    with pytest.raises(CorruptFile, match="at most"):
        Run(tree.run().store, tree.run().run).update(2, EVIL, 1)
