"""Whatever a member brings as key layers or residuals, the round names it and does not fail."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from photon_core.aggregation import fit
from photon_core.errors import CorruptFile
from photon_core.run import garbage
from photon_core.run.garbage import Rule
from photon_core.run.run import Run, forget_runs
from photon_core.store.store import Store
from photon_core.tensors.shards import copy_files
from schemas.bounds import POOL_LIMIT
from schemas.manifests import Attention, DownManifest, FileEntry, Residual, RoundManifest, UpdateManifest
from schemas.view import view_of
from tests.federations import sections, site
from tests.played import MODEL, Played, put, tensors
from tests.worlds import write_world

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


def attacked(tree: Played) -> RoundManifest:
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
    "10^6 times as large": (scaled(1e6), "its key layers have distance .* over 10 times their norm"),
    "as large as can be": (filled(3e38), "its key layers have distance .* over 10 times their norm"),
    "none": (lambda _: {"key_layers": []}, "tensor 'blocks.1.attn.Wqkv.bias' is missing"),
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
    "many files": (many_files, "it has 100 files"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_key_layers_are_excluded_by_name(flat: Callable[..., Played], case: str) -> None:
    tree, (change, reason) = flat({}), CASES[case]
    tree.play()
    attack = Attack(tree)
    tree.run().commit_update(attack.update.model_copy(update=change(attack)))
    found = attacked(tree)
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
    assert set(attacked(tree).left_out) == {EVIL}


def test_one_of_two_regions_does_not_carry_away_the_other(tmp_path: Path) -> None:
    """Nobody is in the middle of two: the size of what was sent counts."""
    tree = Played(
        write_world(
            tmp_path / "world", root={"model": MODEL, "rounds": {"count": 9, "quorum": 1}}, region={"model": MODEL}
        )
    )
    tree.play()
    update, run = tree.fit(tree.world.federation, "north", 2), tree.run()
    arrays = tensors(run, run.site_dir(2, "north", 1), update.key_layers)
    layers = put(run, run.site_dir(2, "north", 2), {name: 1e4 * a for name, a in arrays.items()}, "blocks.1-")
    copies = copy_files(
        run.store, run.site_dir(2, "north", 1), update.files, run.store, run.site_dir(2, "north", 2)
    )
    changes = {"attempt": 2, "files": copies, "key_layers": layers, "residuals": []}
    run.commit_update(update.model_copy(update=changes))
    found = tree.round(tree.world.federation, 2, absent=("north",))
    assert set(found.left_out) == {"north"} and "over 10 times their norm" in found.left_out["north"]
    forget_runs()


def test_key_layers_of_a_run_that_has_none_are_refused(flat: Callable[..., Played]) -> None:
    tree = flat(None)
    tree.play()
    attack = Attack(tree)
    layer = put(attack.run, attack.folder, {"blocks.0.norm_1.bias": np.zeros(8, np.float32)})
    tree.run().commit_update(attack.update.model_copy(update={"key_layers": layer}))
    assert "tensor 'blocks.0.norm_1.bias' is not one of the model's key layers" in attacked(tree).left_out[EVIL]


def test_a_file_that_cannot_be_read_is_looked_at_again_alone(
    flat: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a key layer fails as a disk does: its site is excluded, with the error."""
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
    found = attacked(tree)
    assert set(found.left_out) == {EVIL} and "broken on purpose" in found.left_out[EVIL]
    assert bad in looks


def test_garbage_collection_believes_no_residual_about_others_files(flat: Callable[..., Played]) -> None:
    """A site says of round 0's model, which is kept, that it is a residual of round 2, which is not."""
    tree = flat({"key_layers": 1})
    tree.play()
    attack, base = Attack(tree), tree.run().round(0)
    evil = Residual(layer="blocks.1", origin=[EVIL], born=1, folder=tree.run().round_dir(0), files=base.model)
    tree.run().commit_update(attack.update.model_copy(update={"residuals": [evil]}))
    attacked(tree)
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
    found = attacked(tree)
    assert set(found.left_out) == {EVIL} and "at most" in found.left_out[EVIL]
    with pytest.raises(CorruptFile, match="at most"):
        Run(tree.run().store, tree.run().run).update(2, EVIL, 1)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Played]:
    """Three regions of two sites each."""
    regions = {"east": ("a", "b"), "north": ("c", "d"), "west": ("e", "f")}
    root = {"model": MODEL, "rounds": {"count": 9, "quorum": 1}}
    yield Played(write_world(tmp_path / "world", regions, root=root, region={"model": MODEL}))
    forget_runs()


def scale(run: Run, folder: str, residual: Residual, factor: float) -> Residual:
    """The residual with other values."""
    found = tensors(run, residual.folder, residual.files)
    arrays = {name: (values * factor).astype(np.float32) for name, values in found.items()}
    return residual.model_copy(update={"files": put(run, folder, arrays, "x-")})


RESIDUALS: dict[str, tuple[Callable[[Run, str, Residual], Residual], str]] = {
    "NaN": (lambda run, folder, r: scale(run, folder, r, np.nan), "holds NaN or Inf"),
    "no origin": (lambda _, __, r: r.model_copy(update={"origin": []}), "is not a path of names"),
    "markup": (lambda _, __, r: r.model_copy(update={"origin": ["[/x]"]}), "is not a path of names"),
    "an endless origin": (lambda _, __, r: r.model_copy(update={"origin": ["c"] * 999}), "is not a path of names"),
    "no layer": (lambda _, __, r: r.model_copy(update={"layer": "x"}), "residual 'x' is not one of the model's"),
    "no files": (lambda _, __, r: r.model_copy(update={"files": []}), "is not one of the model's key layers"),
    "another's folder": (lambda run, _, r: r.model_copy(update={"files": run.round(0).model}), "is not one of"),
    "another's file": (
        lambda _, __, r: r.model_copy(update={"files": [r.files[0].model_copy(update={"path": "../x"})]}),
        "is not a path inside the store",
    ),
    "gone": (
        lambda _, __, r: r.model_copy(update={"files": [r.files[0].model_copy(update={"path": "gone"})]}),
        "gone is missing",
    ),
}


def bring(patch: pytest.MonkeyPatch, change: Callable[[Run, str, Residual], Residual]) -> None:
    """Have `north` hand up another residual in the root's round 2."""
    real = Run.commit_update

    def commit(run: Run, manifest: UpdateManifest) -> None:
        if (manifest.site, manifest.round) == ("north", 2):
            assert manifest.residuals
            folder = run.site_dir(2, "north", 1)
            changed = [change(run, folder, residual) for residual in manifest.residuals]
            manifest = manifest.model_copy(update={"residuals": changed})
        real(run, manifest)

    patch.setattr(Run, "commit_update", commit)


@pytest.mark.parametrize("case", RESIDUALS)
def test_a_member_with_a_bad_residual_is_excluded_by_name(
    tree: Played, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, reason = RESIDUALS[case]
    bring(monkeypatch, change)
    found = tree.play(2)
    assert set(found.left_out) == {"north"} and set(found.updates) == {"east", "west"}
    assert reason in found.left_out["north"]


@pytest.mark.parametrize("factor", [3.0, 1e6, 1e-3, 0.0])
def test_a_residual_of_another_size_goes_nowhere(
    tree: Played, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """A cosine does not depend on it, but the layer of its receiver would."""
    bring(monkeypatch, lambda run, folder, residual: scale(run, folder, residual, factor))
    found = tree.play(2)
    assert set(found.updates) == {"east", "north", "west"} and found.dropped == {"out of line": 1}
    assert {residual.origin[0] for residual in found.down} == {"east", "west"}
    assert tree.play().left_out == {}


def test_a_site_of_another_size_is_not_picked_as_a_residual(tree: Played) -> None:
    tree.play()
    federation = tree.world.federation
    child, call, entry = tree.enter(federation, "north", 2)
    run, view = tree.run("north"), view_of(child, "c")
    update, folder = tree.update(run, view, entry.round + 1, 1), run.site_dir(entry.round + 1, "c", 1)
    arrays = {name: -3 * values for name, values in tensors(run, folder, update.key_layers).items()}
    layers = put(run, folder, arrays, "blocks.1-")
    run.commit_update(update.model_copy(update={"key_layers": layers}))
    rounds = tree.round(child, entry.round + 1)
    assert set(rounds.updates) == {"c", "d"} and [residual.origin for residual in rounds.up] == [["d"]]
    assert [r.origin for r in fit.contribute(run, child, call, entry).residuals] == [["d"]]


def test_files_that_members_damage_later_stop_nobody(tree: Played) -> None:
    """Residuals, and the newest key layers of members, lie in folders that members can write to."""
    first = tree.play()
    root, gone = tree.run(), first.down[0]
    root.store.discard(f"{gone.folder}/{gone.files[0].path}")
    last = first.updates["west"]
    west = root.update(1, "west", last.attempt)
    root.store.discard(f"{root.site_dir(1, 'west', 1)}/{west.key_layers[0].path}")
    second = tree.play()
    assert second.left_out == {} and len(first.down) == 3
    sent = [residual.origin for name in second.updates for residual in root.residuals(2, name)]
    assert 0 < len(sent) <= 2 and gone.origin not in sent

    federation = tree.world.federation
    child, call, entry = tree.enter(federation, "north", 3)
    rounds, run = tree.round(child, entry.round + 1), tree.run("north")
    up = rounds.up[0]
    run.store.discard(f"{up.folder}/{up.files[0].path}")
    assert fit.contribute(run, child, call, entry).residuals == []
    for name in "east", "west":
        for residual in root.residuals(3, name):
            root.store.discard(f"{residual.folder}/{residual.files[0].path}")
    assert tree.play().left_out == {}


def test_garbage_collection_believes_no_down_json_about_others_files(tree: Played) -> None:
    tree.play()
    root, base = tree.run(), tree.run().round(0)
    evil = Residual(layer="blocks.1", origin=["x"], born=1, folder=root.round_dir(0), files=base.model)
    root.commit_residuals(DownManifest(run=root.run, round=2, member="nobody", residuals=[evil]))
    tree.play(3)
    run = Run(root.store, root.run)
    garbage.remove(run, garbage.look(run, Rule(last=1, every=4), 1e12))
    for file in base.model:
        run.store.check(file, run.round_dir(0))
