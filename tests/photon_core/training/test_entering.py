"""What a site trains from: the committed backbone, and its own key layers, wherever they lie and however old."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.aggregation.choice import OPTIONS
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile
from photon_core.model.init import initial_model
from photon_core.model.key_layers import files_of_groups, key_layers, names_in
from photon_core.model.shapes import parameter_shapes
from photon_core.run.garbage import Rule, look, remove
from photon_core.run.opening import open_run
from photon_core.run.rollback import roll_back
from photon_core.run.run import Run, model_sha256, run_of
from photon_core.run.start import Initial
from photon_core.tensors.local import regroup
from photon_core.tensors.shards import put_file
from photon_core.training.entering import Entry, Losses, enter, enter_best
from photon_core.training.state.folder import UPDATE, publish, writing
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.manifests import FileEntry, LastUpdate, RoundManifest, UpdateManifest, UpdateRef
from schemas.sections.worldlm import WorldLM
from schemas.view import view_of
from tests.federations import sections, site

Arrays = dict[str, np.ndarray]


class Tree:
    """A run of sites a and b whose last block is a key layer; rounds are committed with random numbers."""

    def __init__(self, folder: Path, store: str | None = None, **worldlm: Any) -> None:
        self.folder = folder
        sites = [site(name, state_dir=str(folder / name)) for name in "ab"]
        model = {"n_layers": 2, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 16}
        store = store or str(folder / "store")
        values = sections(sites=sites, model=model, worldlm={"key_layers": 1, **worldlm})
        self.federation = Federation.model_validate({**values, "store": store})
        (folder / "initial").mkdir()
        initial = Initial(initial_model(self.federation, folder / "initial"))
        open_run(self.run, self.federation, load_tokenizer("bytes").sha256, lambda: initial)
        self.thetas = [load_file(initial.files[0])]
        self.layers = key_layers(self.federation)
        self.key = names_in(self.layers)

    @property
    def run(self) -> Run:
        return run_of(self.federation)

    def arrays(self, seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        shapes = parameter_shapes(self.federation.model)
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def files(self, values: Arrays, name: str) -> tuple[Path, list[FileEntry]]:
        """The tensors in files of the backbone or of a key layer each."""
        folder = self.folder / "made" / name
        folder.mkdir(parents=True)
        save_file(values, folder / "whole")
        groups = files_of_groups({k: v for k, v in self.layers.items() if v[0] in values}, values)
        return folder, regroup([folder / "whole"], groups, folder)

    def commit(self, t: int, *sites: str, keep: bool = True) -> dict[str, Arrays]:
        """Round t, to which these sites have contributed; each keeps its state, if asked."""
        run, found, refs = self.run, {}, {}
        for number, name in enumerate(sites):
            values = {n: v for n, v in self.arrays(10 * t + number).items() if n in self.key}
            found[name] = values
            folder, entries = self.files(values, f"{t}-{name}")
            place = run.site_dir(t, name, 1)
            uploaded = [put_file(run.store, folder / entry.path, place, entry=entry) for entry in entries]
            base = run.round(t - 1)
            assert base is not None
            run.commit_update(
                UpdateManifest(
                    **{"run": run.run, "round": t, "site": name, "attempt": 1, "codec": "float32", "files": []},
                    **{"tokens": 1, "steps": 1, "metrics": {}, "data_sha256": "", "versions": {}},
                    base_sha256=base.model_sha256,
                    key_layers=uploaded,
                    previous_sha256=run.round_sha256(t - 1),
                )
            )
            refs[name] = UpdateRef(attempt=1, sha256="", tokens=1, weight=1.0, bytes=1, steps=1, metrics={})
            if keep:
                self.keep(t, name, folder, entries)
        self._round(t, refs)
        return found

    def keep(self, t: int, name: str, folder: Path, entries: list[FileEntry]) -> None:
        """The site's private state of round t."""
        state_dir = view_of(self.federation, name).state_dir
        (state_dir / "state").mkdir(parents=True, exist_ok=True)
        with writing(state_dir) as written:
            (written / UPDATE).mkdir()
            (written / "training.pt").write_bytes(b"")
            for entry in entries:
                shutil.copyfile(folder / entry.path, written / UPDATE / entry.path)
            own = [entry.model_copy(update={"path": f"{UPDATE}/{entry.path}"}) for entry in entries]
            trained = Trained(
                **{"round": t, "attempt": 1, "base_sha256": "", "codec": "float32", "tokens": 1, "steps": 1},
                **{"metrics": {}, "files": [], "folder": "", "seconds": {}, "key_layers": own},
            )
            publish(state_dir, written, trained, "", resume=None)

    def _round(self, t: int, refs: dict[str, UpdateRef]) -> None:
        run, before = self.run, self.run.round(t - 1)
        assert before is not None
        self.thetas.append(self.arrays(t))
        folder, entries = self.files(self.thetas[t], str(t))
        place = f"{run.round_dir(t)}/model"
        model = [put_file(run.store, folder / entry.path, place, "model/", entry) for entry in entries]
        known = {**(before.earlier or {}), **{s: LastUpdate(round=t - 1, attempt=1) for s in before.updates}}
        run.commit_round(
            RoundManifest(
                **{"run": run.run, "round": t, "model": model, "model_sha256": model_sha256(model)},
                **{"federation_sha256": "", "created": "", "versions": {}, "updates": refs},
                earlier={name: last for name, last in known.items() if name not in refs},
                key_layers=self.layers,
                previous_sha256=run.round_sha256(t - 1),
            )
        )

    def enter(self, t: int, name: str, losses: Losses | None = None) -> Entry:
        base = self.run.round(t - 1)
        assert base is not None
        place, view = self.run.files_dir(t - 1), view_of(self.federation, name)
        committed = self.run.store.fetch_all(base.model, place, self.folder / "fetched", 2)
        if losses is None:
            return enter(self.run, view, t, 1, committed)
        return enter_best(self.run, view, t, 1, committed, losses)


def read(entry: Entry) -> Arrays:
    return {name: value for path in entry.files for name, value in load_file(path).items()}


def same(tree: Tree, entry: Entry, theta: Arrays, own: Arrays) -> bool:
    """Whether the backbone is the committed one, and the key layers are these."""
    found = read(entry)
    assert found.keys() == theta.keys()
    return all(np.array_equal(found[n], (own if n in tree.key else theta)[n]) for n in theta)


def test_the_first_round_starts_from_the_committed_model_to_the_bit(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    base = tree.run.round(0)
    assert base is not None
    entry = tree.enter(1, "a")
    assert [path.name for path in entry.files] == [Path(file.path).name for file in base.model]
    assert (entry.sha256, entry.attention) == (base.model_sha256, {})
    assert same(tree, entry, tree.thetas[0], tree.thetas[0])


def test_later_rounds_start_from_a_mean_of_own_and_committed_key_layers(tmp_path: Path) -> None:
    tree = Tree(tmp_path, attention="mean")
    tree.commit(1, "a", "b")
    own = tree.commit(2, "a", "b")["a"]
    entry = tree.enter(3, "a")
    attention = entry.attention["blocks.1"]
    assert (attention.rows, attention.weights) == (["own", "parent"], [0.5, 0.5])
    mean = {n: own[n] - np.float32(0.5) * (own[n] - tree.thetas[2][n]) for n in tree.key}
    assert same(tree, entry, tree.thetas[2], mean)
    again = tree.enter(3, "a")
    assert again == entry
    base = tree.run.round(2)
    assert base is not None and entry.sha256 not in ("", base.model_sha256)
    assert tree.enter(3, "b").sha256 != entry.sha256


def test_at_temperature_0_a_site_goes_on_from_its_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path, temperature=0)
    own = tree.commit(1, "a", "b")
    for name in "ab":
        assert same(tree, tree.enter(2, name), tree.thetas[1], own[name])


@pytest.mark.parametrize("best", OPTIONS)
def test_with_auto_a_site_enters_with_the_option_of_the_lowest_loss(tmp_path: Path, best: str) -> None:
    tree, same_as = Tree(tmp_path, temperature="auto"), {"own": 0, "0.3": 0.3, "1": 1, "3": 3}
    assert tree.enter(1, "a", dict[str, float].fromkeys).attention == {}, "nothing to choose"
    own = tree.commit(1, "a", "b")["a"]
    given = {option: 1.5 if option == best else 2.0 for option in OPTIONS}
    tried: list[str] = []

    def losses(models: Mapping[str, Entry]) -> dict[str, float]:
        tried.extend(one.sha256 for one in models.values())
        assert all(path.exists() for one in models.values() for path in one.files)
        return given

    entry = tree.enter(2, "a", losses)
    assert len(set(tried)) == len(OPTIONS) and entry.sha256 in tried
    assert (entry.attention["blocks.1"].chosen, entry.attention["blocks.1"].losses) == (best, given)
    if best in same_as:
        tree.federation = tree.federation.model_copy(
            update={"worldlm": WorldLM(key_layers=1, temperature=same_as[best])}
        )
        assert tree.enter(2, "a").sha256 == entry.sha256
    elif best == "parent":
        assert same(tree, entry, tree.thetas[1], tree.thetas[1])
    else:
        mean = {n: own[n] - np.float32(0.5) * (own[n] - tree.thetas[1][n]) for n in tree.key}
        assert same(tree, entry, tree.thetas[1], mean)
    left = {path.parent.name for path in (tmp_path / "a/cache/entry/r/000002-0001").glob("as-*/*")}
    assert left == ({f"as-{best}"} - {"as-1"}), "the others are removed"


def test_a_late_joiner_and_a_site_that_was_away_enter_with_what_they_have(tmp_path: Path) -> None:
    """Three rounds later, after `photon gc`, b continues with its key layers of round 1."""
    tree = Tree(tmp_path, temperature=0)
    old = tree.commit(1, "a", "b", keep=False)["b"]
    for t in (2, 3, 4):
        tree.commit(t, "a")
    remove(tree.run, look(tree.run, Rule(last=1)))
    assert same(tree, tree.enter(5, "b"), tree.thetas[4], old)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_own_key_layers_that_are_lost_here_are_read_from_the_store(tmp_path: Path, kind: str) -> None:
    tree = Tree(tmp_path, f"memory://{tmp_path}" if kind == "memory" else None, temperature=0)
    own = tree.commit(1, "a")["a"]
    update = tree.run.update(1, "a", 1)
    assert update is not None
    kept = tmp_path / "a/state/000001-0001/update" / "blocks.1-00001-of-00001.safetensors"
    fetched = tmp_path / "a/cache/entry/r/000002-0001/own" / update.key_layers[0].sha256
    first = tree.enter(2, "a")
    assert kept.exists() and not fetched.exists(), "its private state has them"
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\0")
    assert tree.enter(2, "a") == first
    assert fetched.exists() == (kind == "memory")
    shutil.rmtree(tmp_path / "a/state")
    assert same(tree, tree.enter(2, "a"), tree.thetas[1], own)
    tree.run.store.discard(f"{tree.run.site_dir(1, 'a', 1)}/{update.key_layers[0].path}")
    shutil.rmtree(tmp_path / "a/cache")
    with pytest.raises(CorruptFile, match=r"blocks\.1-00001-of-00001.* is missing, although a manifest covers it"):
        tree.enter(2, "a")


def test_the_private_state_suffices_where_the_store_has_lost_them(tmp_path: Path) -> None:
    tree = Tree(tmp_path, f"memory://{tmp_path}", temperature=0)
    own = tree.commit(1, "a")["a"]
    update = tree.run.update(1, "a", 1)
    assert update is not None
    tree.run.store.discard(f"{tree.run.site_dir(1, 'a', 1)}/{update.key_layers[0].path}")
    assert same(tree, tree.enter(2, "a"), tree.thetas[1], own)


def test_after_a_rollback_a_site_goes_on_from_what_it_had_then(tmp_path: Path) -> None:
    tree = Tree(tmp_path, temperature=0)
    own = tree.commit(1, "a", "b")
    for t in (2, 3):
        tree.commit(t, "a")
    roll_back(tree.run, tree.federation, 1)
    assert same(tree, tree.enter(5, "a"), tree.thetas[1], own["a"])


def test_what_rounds_long_past_started_from_is_removed_and_nothing_else(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for t in (1, 2, 3):
        tree.commit(t, "a")
        tree.enter(t + 1, "a")
    folder = tmp_path / "a/cache/entry/r"
    assert sorted(path.name for path in folder.iterdir()) == ["000003-0001", "000004-0001"]
    mine = [folder / "000001-0001/notes.txt", folder / "000003-0001/mine.safetensors", folder / "x/y"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for t in (4, 5):
        tree.commit(t, "a")
        tree.enter(t + 1, "a")
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert [path.name for path in (folder / "000003-0001").iterdir()] == ["mine.safetensors"]


def test_a_federation_without_key_layers_starts_from_the_committed_files(tmp_path: Path) -> None:
    tree = Tree(tmp_path, key_layers=0)
    files = [tmp_path / "one", tmp_path / "two"]
    assert enter(tree.run, view_of(tree.federation, "a"), 1, 1, files) == Entry(files)
    assert not (tmp_path / "a").exists()
