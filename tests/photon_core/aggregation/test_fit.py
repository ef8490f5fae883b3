"""A federation as a member: what it enters with and hands up, after faults, races, rollbacks and collections."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_core.aggregation import fit
from photon_core.aggregation.choice import OPTIONS
from photon_core.errors import PhotonError, QuorumMissed, StoreConflict
from photon_core.run import garbage
from photon_core.run.garbage import Rule
from photon_core.run.members import world_of
from photon_core.run.rollback import roll_back
from photon_core.run.run import forget_runs, model_sha256
from photon_core.store.store import Store
from schemas.manifests import RoundManifest
from tests.conftest import merge
from tests.federations import attempts_of
from tests.played import Play, Played, edit

LATER = time.time() + 1e6


def kinds(chain: list[RoundManifest]) -> str:
    """One letter a round."""
    return "".join(manifest.kind[0] for manifest in chain)


def test_a_region_whose_sites_make_unequal_steps_is_believed(play: Play) -> None:
    tree = play(root={"rounds": {"quorum": 1}})
    file = tree.file.with_name("north.yaml")
    sites = yaml.safe_load(file.read_text())["sites"]
    edit(file, sites=[sites[0], sites[1] | {"steps": 2}])
    assert tree.play().left_out == {}
    north = tree.run().update(1, "north", 1)
    assert north is not None and (north.steps, north.tokens) == (3, (3 + 2) * 4 * 16)


def test_with_auto_a_region_enters_with_the_best_of_what_it_has_tried(play: Play, tmp_path: Path) -> None:
    auto = {"worldlm": {"temperature": "auto"}}
    tree = play(root=auto, region=auto)
    tree.play(0)
    federation, run = tree.world.federation, tree.run("north")
    child, call = tree.world.children["north"].federation, fit.call_of(federation, "north", 1)
    assert fit.trials(run, child, call, tmp_path) == {}, "it has no own key layers"
    tree.play()
    call = fit.call_of(federation, "north", 2)
    models = fit.trials(run, child, call, tmp_path)
    assert list(models) == list(OPTIONS) and len({model_sha256(model) for model in models.values()}) == 6
    losses = {option: abs(number - 4.0) for number, option in enumerate(OPTIONS)}
    entry = fit.enter(run, child, call, tmp_path, losses)
    assert entry.model_sha256 == model_sha256(models["mean"])
    assert (entry.attention["blocks.1"].chosen, entry.attention["blocks.1"].losses) == ("mean", losses)
    assert fit.trials(run, child, call, tmp_path) == {}, "it has entered"


def test_a_region_whose_longest_site_is_away_is_believed(play: Play) -> None:
    tree = play(root={"rounds": {"quorum": 1}}, region={"rounds": {"quorum": 1}})
    file = tree.file.with_name("north.yaml")
    sites = yaml.safe_load(file.read_text())["sites"]
    edit(file, sites=[sites[0], sites[1] | {"steps": 1}, sites[1] | {"name": "z", "state_dir": "z", "steps": 1}])
    tree.play(0)
    child, call, entry = tree.enter(tree.world.federation, "north", 1)
    tree.round(child, 1 + entry.round, absent=("a",))
    fit.contribute(tree.run("north"), child, call, entry)
    assert tree.play().left_out == {}


def test_what_the_parents_file_asks_of_its_sites_is_not_asked_of_a_region(play: Play) -> None:
    tree = play(root={"update": {"clip_norm": 1.0, "codec": "int8"}})
    tree.play()
    tree.fit(tree.world.federation, "north", 2)
    edit(tree.file, update={"clip_norm": 0.5})
    assert set(tree.play().updates) == {"north", "south"}


AVERAGE: dict[str, Any] = {"local": {"optimizer_state": "average"}}
MUON: dict[str, Any] = {"local": {"optimizer": {"name": "muon", "lr": 2e-3}, "optimizer_state": "average"}}
NOISE: dict[str, Any] = {"update": {"clip_norm": 1.0, "noise_multiplier": 0.5}}


@pytest.mark.parametrize(("root", "north", "bring", "entered"), [
    (AVERAGE, AVERAGE, True, "parent"),
    (AVERAGE, {}, False, ""),
    (AVERAGE, NOISE, False, ""),
    (AVERAGE, MUON, False, "own"),
    ({}, AVERAGE, False, "own"),
    ({}, {}, False, ""),
])  # fmt: skip
def test_averaged_moments_cross_a_level_where_both_sides_average_the_same(
    play: Play, root: dict[str, Any], north: dict[str, Any], bring: bool, entered: str
) -> None:
    tree = play(root=root)
    data = yaml.safe_load(tree.file.with_name("north.yaml").read_text())
    edit(tree.file.with_name("north.yaml"), **merge({"local": data["local"]}, north))
    edit(tree.file.with_name("south.yaml"), **merge({"local": data["local"]}, AVERAGE))
    first = tree.play()
    assert first.left_out == {}
    updates = {name: tree.run().update(1, name, 1) for name in ("north", "south")}
    assert bool(updates["north"].moments) == bring
    assert bool(first.moments) == bool(updates["south"].moments) == (root == AVERAGE)
    assert not any("blocks.1." in name for file in first.moments for name in file.tensors), "of key layers"
    tree.play()
    (_, _, last, again, *_) = tree.chain("north")
    hashes = {"parent": first.moments, "own": last.moments, "": []}
    assert again.kind == "entry"
    assert [file.sha256 for file in again.moments] == [file.sha256 for file in hashes[entered]]


def test_a_region_that_rolls_back_in_the_middle_of_a_call_enters_again(play: Play) -> None:
    tree = play(region={"worldlm": {"rounds": 2}})
    tree.play()
    child, call, entry = tree.enter(tree.world.federation, "north", 2)
    tree.round(child, entry.round + 1)
    for to in (2, 0):
        roll_back(tree.run("north"), child, to)
        with pytest.raises(PhotonError, match="rolled back to before round 4, its entry, and must enter again"):
            fit.contribute(tree.run("north"), child, call, entry)
        with pytest.raises(PhotonError, match="rolled back to before round 4"):
            next(fit.rounds_to_make(tree.run("north"), child, entry))
        child, call, again = tree.enter(tree.world.federation, "north", 2)
        assert again.round > entry.round and again.parent == entry.parent
        assert again.model[0].sha256 == entry.model[0].sha256, "the parent's backbone"
    tree.play()
    assert kinds(tree.chain("north")) == "tett" + "et" + "re" + "re" + "tt"
    assert tree.chain("north")[-1].place == 2


def test_a_rollback_to_the_entry_makes_its_rounds_again(play: Play) -> None:
    tree = play(region={"worldlm": {"rounds": 2}})
    tree.play(0)
    child, _, entry = tree.enter(tree.world.federation, "north", 1)
    first = tree.round(child, 2)
    roll_back(tree.run("north"), child, 1)
    assert tree.enter(tree.world.federation, "north", 1)[2] == entry
    tree.play()
    assert kinds(tree.chain("north")) == "tetrtt"
    assert tree.chain("north")[4].model_sha256 == first.model_sha256
    assert tree.run().update(1, "north", 1).steps == 6


def test_a_rollback_of_the_root_takes_its_regions_along(play: Play) -> None:
    """From there on the bits are those of a run that never trained beyond it, of regions' own key layers, too."""
    tree = play(root={"rounds": {"count": 5}}, region={"worldlm": {"rounds": 2}})
    tree.play(3)
    roll_back(tree.run(), tree.world.federation, 1)
    again = tree.play(2)
    rounds = tree.chain()
    assert [m.model_sha256 for m in rounds[5:]] == [m.model_sha256 for m in rounds[2:4]]
    assert again.place == 3
    for name in ("north", "south"):
        chain = tree.chain(name)
        assert kinds(chain) == "tett" + "ettett" + "r" + "ettett"
        assert chain[10].to == 3 and chain[10].who == "round 5 of run 'world'"
        assert [m.model_sha256 for m in chain[11:]] == [m.model_sha256 for m in chain[4:10]]


def test_a_region_that_joined_in_what_is_rolled_back_begins_anew(play: Play) -> None:
    tree = play(root={"rounds": {"count": 5}})
    data = yaml.safe_load(tree.file.read_text())["federations"]
    edit(tree.file, federations=[data[0], data[1] | {"paused": True}])
    tree.play(2)
    edit(tree.file, federations=data)
    tree.play()
    joined = tree.chain("south")
    assert kinds(joined) == "tet" and joined[0].model_sha256 == tree.run().round(2).model_sha256
    roll_back(tree.run(), tree.world.federation, 1)
    tree.play()
    chain = tree.chain("south")
    assert kinds(chain) == "tet" + "ret"
    assert chain[4].model_sha256 == tree.run().round(1).model_sha256, "the parent's key layers as they are"


def test_collected_rounds_do_not_keep_a_region_from_entering_after_a_rollback(play: Play) -> None:
    tree = play(root={"rounds": {"count": 5}})
    tree.play(3)
    collect(tree, "north")
    roll_back(tree.run(), tree.world.federation, 1)
    assert set(tree.play().updates) == {"north", "south"}
    assert kinds(tree.chain("north")) == "tetetet" + "et" and kinds(tree.chain("south")) == "tetetet" + "ret"


def collect(tree: Played, *path: str) -> None:
    run = tree.run(*path)
    garbage.remove(run, garbage.look(run, Rule(last=1), LATER))


def test_garbage_collection_leaves_what_a_call_under_way_needs(play: Play) -> None:
    tree = play(region={"worldlm": {"rounds": 4}})
    tree.play()
    child, _, entry = tree.enter(tree.world.federation, "north", 2)
    for n in range(entry.round + 1, entry.round + 4):
        tree.round(child, n)
        for path in (), ("north",), ("south",):
            collect(tree, *path)
    assert set(tree.play().updates) == {"north", "south"}
    run = tree.run("north")
    assert run.removed(entry.round) is None and run.removed(entry.round + 1) is not None


def test_a_region_may_train_on_between_calls_and_in_them(play: Play) -> None:
    """What it hands up is the rounds of the call; its own key layers are of the newest."""
    tree, same = play(region={"worldlm": {"rounds": 2}}), play(region={"worldlm": {"rounds": 2}})
    tree.play(0)
    child, _, entry = tree.enter(tree.world.federation, "north", 1)
    for n in range(entry.round + 1, entry.round + 4):
        tree.round(child, n)
    assert tree.play().model_sha256 == same.play().model_sha256
    assert tree.run().update(1, "north", 1).tokens == same.run().update(1, "north", 1).tokens
    tree.round(child, len(tree.chain("north")))
    assert set(tree.play().updates) == {"north", "south"}
    assert kinds(tree.chain("north")) == "te" + "tttt" + "ett"


def test_a_call_that_a_later_one_has_overtaken_ends(play: Play) -> None:
    """The root continued without the region. What still works for the old round makes none of the new one's."""
    tree = play(root={"rounds": {"quorum": 1}}, region={"worldlm": {"rounds": 2}})
    tree.play(0)
    child, call, entry = tree.enter(tree.world.federation, "north", 1)
    tree.round(child, entry.round + 1)
    tree.round(tree.world.federation, 1, absent=("north",))
    left = fit.rounds_to_make(tree.run("north"), child, entry)
    tree.enter(tree.world.federation, "north", 2)
    with pytest.raises(PhotonError, match="has entered another round of its parent since round 1, its entry"):
        next(left)
    late = fit.contribute(tree.run("north"), child, call, entry)
    assert late.steps == 3, "what it has done may still be handed up; nobody uses it"
    assert set(tree.play().updates) == {"north", "south"}
    assert kinds(tree.chain("north")) == "te" + "t" + "ett"


def test_one_of_two_coordinators_enters(play: Play) -> None:
    tree = play()
    tree.play()
    found: list[RoundManifest | BaseException] = []
    barrier = threading.Barrier(4)

    def enter() -> None:
        barrier.wait()
        try:
            found.append(tree.enter(tree.world.federation, "north", 2)[2])
        except StoreConflict as error:
            found.append(error)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and {one.round for one in found} == {3}  # type: ignore[union-attr]
    assert len({one.model_sha256 for one in found}) == 1  # type: ignore[union-attr]
    assert kinds(tree.chain("north")) == "tete"


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Ends the process in front of its n-th write to any store, or just after it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left, self.after, self.writes = 0, False, list[str]()
        for name in ("create", "put", "open_write"):
            patch.setattr(Store, name, self._hooked(name, getattr(Store, name)))

    def _hooked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(store: Store, *args: Any) -> Any:
            self.left -= 1
            self.writes.append(str(args[0] if name != "put" else args[1]))
            if self.left == 0 and not self.after:
                raise Killed
            found = real(store, *args)
            if self.left == 0:
                raise Killed
            return found

        return called


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_write_of_a_tree_changes_no_bit_and_no_work(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """A root with a site and a region of one site, in its second round."""
    tree = play(regions={"north": ("a",)}, region={"worldlm": {"rounds": 2}})
    root = yaml.safe_load(tree.file.with_name("north.yaml").read_text())["sites"]
    edit(tree.file, sites=[root[0] | {"name": "b", "state_dir": "sites/b"}])
    tree.play()
    killer = Killer(monkeypatch)
    expected, writes = outcome(tree, tmp_path / "whole", killer, 0), len(killer.writes)
    assert writes > 20 and sum("attention-" in path for path in killer.writes) == 3
    killer.after = after
    for number in range(1, writes + 1):
        assert outcome(tree, tmp_path / str(number), killer, number) == expected, killer.writes[number - 1]


def outcome(tree: Played, folder: Path, killer: Killer, number: int) -> Any:
    """The hashes of all rounds after a kill at this write and a next start, and what was committed by whom."""
    shutil.copytree(tree.file.parent, folder)
    copied, killer.left = Played(folder / "world.yaml"), number
    killer.writes.clear()
    if number:
        with pytest.raises(Killed):
            copied.play()
        forget_runs()
    if copied.chain()[-1].round < tree.chain()[-1].round + 1:
        copied.play()
    committed = Counter[tuple[str, int, str]]()
    for path in (), ("north",):
        run = copied.run(*path)
        for manifest in copied.chain(*path)[1:]:
            for name in manifest.updates:
                committed[run.run, manifest.round, name] += len(attempts_of(run, manifest.round, name))
    hashes = [[m.model_sha256 for m in copied.chain(*path)] for path in ((), ("north",))]
    shutil.rmtree(folder)
    return hashes, committed


def test_a_tree_of_three_levels(play: Play) -> None:
    tree = play(region={"worldlm": {"rounds": 2}})
    north, alps = tree.file.with_name("north.yaml"), tree.file.with_name("alps.yaml")
    data = yaml.safe_load(north.read_text())
    parent = {"store": "store-north", "run": "north", "member": "alps"}
    site = data["sites"][0] | {"name": "x", "state_dir": "sites/x"}
    alps.write_text(
        yaml.safe_dump(data | {"run": "alps", "store": "store-alps", "parent": parent, "sites": [site]})
    )
    edit(north, federations=[{"name": "alps", "federation": "alps.yaml"}])
    rounds = tree.play(2)
    assert set(rounds.updates) == {"north", "south"} and rounds.global_step == 2 * 2 * 2 * 3
    assert (
        kinds(tree.chain("north")) == "tett" * 1 + "ett" and kinds(tree.chain("north", "alps")) == "t" + "ett" * 4
    )
    entries = [m for m in tree.chain("north", "alps") if m.kind == "entry"]
    assert [m.parent.round for m in entries] == [2, 3, 5, 6] and {m.horizon for m in entries} == {20}
    assert [m.global_step for m in entries] == [0, 6, 12, 18]
    roll_back(tree.run(), tree.world.federation, 1)
    edit(tree.file, rounds={"count": 5, "report_every": None})
    assert tree.play().model_sha256 == tree.run().round(2).model_sha256
    assert kinds(tree.chain("north", "alps")) == "t" + "ett" * 4 + "r" + "ett" * 2


def test_a_contribution_by_a_file_that_was_edited_since_is_made_again(play: Play) -> None:
    """A region's sites make fewer steps from now on, so that what it handed up is more than its file admits."""
    tree = play(region={"worldlm": {"rounds": 2}})
    tree.play()
    child, _, entry = tree.enter(tree.world.federation, "north", 2)
    tree.round(child, entry.round + 1)
    file = tree.file.with_name("north.yaml")
    edit(file, local=yaml.safe_load(file.read_text())["local"] | {"steps": 2})
    with pytest.raises(QuorumMissed, match="north: it claims 640 trained tokens; at most 512 are possible"):
        tree.play()
    assert tree.play().updates["north"].steps == 4
    assert [update.steps for update in attempts_of(tree.run(), 2, "north")] == [5, 4]
    assert kinds(tree.chain("north")) == "tett" + "ett" + "ett"


def test_a_damaged_contribution_is_made_again(play: Play) -> None:
    tree = play()
    tree.play()
    update = tree.fit(tree.world.federation, "north", 2)
    run = tree.run()
    path = Path(run.store.url) / run.site_dir(2, "north", 1) / update.key_layers[0].path
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    assert tree.play().updates["north"].attempt == 2


@pytest.mark.parametrize("now", [{"optimizer_state": "keep"}, MUON["local"]])
def test_an_edit_of_what_the_root_averages_stops_no_region(play: Play, now: dict[str, Any]) -> None:
    tree = play(root=AVERAGE, region=AVERAGE)
    tree.play()
    for name in "north", "south":
        assert tree.fit(tree.world.federation, name, 2).moments
    edit(tree.file, local=yaml.safe_load(tree.file.read_text())["local"] | now)
    found = tree.play()
    assert set(found.updates) == {"north", "south"} and not found.moments


def test_all_bytes_that_a_region_hands_up_are_counted(play: Play) -> None:
    tree = play(root=AVERAGE, region=AVERAGE)
    found, update = tree.play(), tree.run().update(1, "north", 1)
    assert update.moments and update.key_layers and update.residuals
    folder = Path(tree.run().store.url) / tree.run().site_dir(1, "north", 1)
    files = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    assert found.updates["north"].bytes == sum(path.stat().st_size for path in files)


def test_the_order_of_members_and_a_region_s_seed_change_no_bit(play: Play) -> None:
    """The seed draws samples and batches; the first model is the parent's."""
    tree, other = play(), play()
    edit(other.file, federations=yaml.safe_load(other.file.read_text())["federations"][::-1])
    for name in "north", "south":
        file = other.file.with_name(f"{name}.yaml")
        edit(file, sites=yaml.safe_load(file.read_text())["sites"][::-1], seed=99)
    tree.play(2)
    other.play(2)
    for path in (), ("north",), ("south",):
        mine, theirs = ([m.model_sha256 for m in one.chain(*path)] for one in (tree, other))
        assert mine == theirs


def test_a_region_that_is_away_is_left_out_and_enters_later_with_what_it_has(play: Play) -> None:
    tree = play(root={"rounds": {"count": 5, "quorum": 1}})
    tree.play()
    tree.round(tree.world.federation, 2, absent=("south",))
    assert tree.run().round(2).left_out == {"south": "away"}
    tree.play()
    entry = tree.chain("south")[3]
    assert entry.kind == "entry" and entry.parent.round == 3 and entry.global_step == 6
    assert entry.attention["blocks.1"].distances[1] > 0
    edit(tree.file, rounds={"count": 9, "quorum": 2, "report_every": None})
    with pytest.raises(QuorumMissed, match="Excluded: south: away"):
        tree.round(tree.world.federation, 4, absent=("south",))


def test_the_learning_rate_of_rounds_that_nobody_asked_for_is_the_trees(play: Play) -> None:
    from photon_core.run.birth import as_born

    tree = play(root={"local": {"schedule": {"total_steps": 600}}})
    tree.play()
    child = world_of(tree.world.federation, "north").federation
    assert child.schedule_steps == 20
    assert as_born(tree.run("north"), child).schedule_steps == 600
