"""Noise on the mean: its strength, its bits, what leaves a region with it, and weights that fall with it."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.noise import BLOCK, Noise, added, key_of, noise_of, noise_on
from photon_core.aggregation.round import aggregate_round, alternatives, best_of
from photon_core.aggregation.weights import Shares
from photon_core.errors import CorruptFile, UpdateRejected
from photon_core.model.key_layers import names_in
from photon_core.run.birth import as_entered
from photon_core.run.run import Run, forget_runs
from photon_core.store.store import Store
from schemas.manifests import UpdateManifest
from schemas.sections.server import Server
from schemas.view import view_of
from tests.played import Play, Played, edit, tensors

CLIP, SIGMA = 0.5, 0.4
UPDATE = {"update": {"clip_norm": CLIP}}
ON_MEAN = {"server": {"noise_multiplier": SIGMA, "weights": "uniform"}}
AT_SITES = {"update": {"clip_norm": CLIP, "noise_multiplier": SIGMA}}


def update(site: str, norm: float = 1.0, **more: Any) -> UpdateManifest:
    return UpdateManifest(
        run="r", round=1, site=site, attempt=1, base_sha256="", codec="float32", files=[], tokens=10, steps=1,
        metrics={"train_loss": 1.0, "delta_norm": norm}, data_sha256="", versions={}, previous_sha256="", **more,
    )  # fmt: skip


def drawn(noise: Noise, tensor: str, start: int, size: int) -> np.ndarray:
    values = np.zeros(size, np.float32)
    noise.add(tensor, start, values)
    return values


def test_noise_is_gaussian_and_independent_of_pieces() -> None:
    noise, size = Noise(0.3, "work", b"k" * 32), 5 * BLOCK + 77
    whole = drawn(noise, "w", 0, size)
    assert whole.std() == pytest.approx(0.3, rel=0.02) and abs(whole.mean()) < 0.01
    assert np.mean(np.abs(whole) < 0.3) == pytest.approx(0.6827, abs=0.01)
    for step in (1000, BLOCK, BLOCK + 1, size):
        pieces = [drawn(noise, "w", at, min(step, size - at)) for at in range(0, size, step)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "other",
    [
        (Noise(0.3, "work", b"k" * 32), "v", 0),
        (Noise(0.3, "other", b"k" * 32), "w", 0),
        (Noise(0.3, "work", b"l" * 32), "w", 0),
        (Noise(0.3, "work", b"k" * 32), "w", BLOCK),
    ],
)
def test_other_tensors_work_keys_and_places_meet_other_numbers(other: tuple[Noise, str, int]) -> None:
    noise, tensor, start = other
    one, two = drawn(Noise(0.3, "work", b"k" * 32), "w", 0, BLOCK), drawn(noise, tensor, start, BLOCK)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.08


def test_another_strength_meets_other_numbers(play: Play) -> None:
    """Two strengths of the same numbers on one mean would reveal it."""
    tree = play()
    tree.play(0)
    run = tree.run()
    base, clipped, shares = run.round(0), {"a": update("a", clip_norm=1.0)}, {"a": 1.0}
    assert base is not None
    weak, strong = (noise_on(run, base, clipped, shares, multiplier) for multiplier in (0.5, 1.0))
    assert weak is not None and strong is not None and weak.key == strong.key
    assert abs(np.corrcoef(drawn(weak, "w", 0, BLOCK), drawn(strong, "w", 0, BLOCK))[0, 1]) < 0.08
    assert noise_on(run, base, clipped, shares, 0.5) == weak, "the same mean is never noised in two ways"
    assert noise_on(run, base, clipped, {"a": 0.0}, 1.0) is None, "it holds nothing of a member"
    with pytest.raises(UpdateRejected, match=r"its change was not clipped, as server\.noise_multiplier needs"):
        noise_on(run, base, {"a": update("a")}, shares, 1.0)


def test_the_first_key_of_a_run_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = key_of(Run(store, "r"))
    assert len(first) == 32 and key_of(Run(store, "r")) == first != key_of(Run(store, "other"))
    assert "key=" not in repr(Noise(0.3, "work", first))
    (tmp_path / "r/noise.key").unlink()
    (tmp_path / "r/noise.key").touch()
    with pytest.raises(CorruptFile, match=r"r/noise\.key has 0 bytes, not 32\. Remove it"):
        key_of(Run(store, "r"))


def region(play: Play, *north: dict[str, Any], rounds: int = 1) -> Played:
    """A tree in which the region north has these sections; without residuals that leave a region."""
    tree = play(region={"worldlm": {"residuals": "region", "rounds": rounds}})
    for sections in north:
        edit(tree.file.with_name("north.yaml"), **sections)
    return tree


def difference(run: Run, other: Run, t: int) -> dict[str, np.ndarray]:
    one, two = (tensors(of, of.files_dir(t), of.round(t).model) for of in (run, other))  # type: ignore[union-attr]
    return {name: (one[name] - two[name]).reshape(-1) for name in one}


def test_the_mean_of_n_members_gets_an_nth_of_a_site_s_noise(play: Play) -> None:
    """Key layers, too: there the largest weight of a member takes the place of 1 / n."""
    noisy, clean = region(play, UPDATE, ON_MEAN), region(play, UPDATE)
    noisy.play()
    clean.play()
    found, (_, _, first) = difference(noisy.run("north"), clean.run("north"), 2), noisy.chain("north")
    keys = names_in(first.key_layers)
    backbone = np.concatenate([values for name, values in found.items() if name not in keys])
    (weights,) = (attention.weights for attention in first.attention.values())
    assert backbone.std() == pytest.approx(SIGMA * CLIP / 2, rel=0.05)
    layer = np.concatenate([found[name] for name in sorted(keys)])
    assert layer.std() == pytest.approx(SIGMA * CLIP * max(weights[1:]), rel=0.1)
    assert first.noise == pytest.approx(SIGMA * CLIP / 2)
    assert first.server["noise_multiplier"] == SIGMA
    assert all(one.noise_multiplier == 0 for one in updates_of(noisy.run("north"), 2))


def updates_of(run: Run, t: int) -> list[UpdateManifest]:
    manifest = run.round(t)
    assert manifest is not None
    found = [run.update(t, name, ref.attempt) for name, ref in sorted(manifest.updates.items())]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("noisy", [True, False])
def test_with_auto_members_get_no_second_noisy_mean_of_the_same_changes(play: Play, noisy: bool) -> None:
    more = ON_MEAN if noisy else {}
    tree = region(play, UPDATE, {**more, "worldlm": {"temperature": "auto", "residuals": "region"}})
    tree.play(0)
    child, _, _ = tree.enter(tree.world.federation, "north", 1)
    run = tree.run("north")
    for site in "ab":
        tree.train(run, view_of(child, site), 2)
    candidate = aggregate_round(run, child, 2, ["a", "b"], {})
    found = alternatives(run, child, candidate)
    assert list(found) == (["1"] if noisy else ["1", "own", "0.3", "3", "mean"])
    if not noisy:
        scores = {option: {"a": {"loss": float(len(option)), "tokens": 1.0}} for option in found}
        best = best_of(run, child, found, scores)
        assert best.key_layers.chosen == "1" and best.residuals == candidate.residuals
        scores["mean"]["a"]["loss"] = 0.5
        best = best_of(run, child, found, scores)
        assert best.key_layers.chosen == "mean" and best.key_layers.files == found["mean"].key_layers.files
        assert alternatives(run, child, best) == {"1": best}, "the choice stays, also if the step is repeated"


def test_a_restart_gives_the_same_bits_and_another_run_others(play: Play, tmp_path: Path) -> None:
    tree = region(play, UPDATE, ON_MEAN)
    tree.play(0)
    child, _, entry = tree.enter(tree.world.federation, "north", 1)
    for site in "ab":
        tree.train(tree.run("north"), view_of(child, site), 2)
    shutil.copytree(tree.file.parent, tmp_path / "copy")

    def aggregated(of: Played) -> str:
        forget_runs()
        run = of.run("north")
        federation = as_entered(of.world.children["north"].federation, entry)
        candidate = aggregate_round(run, federation, 2, ["a", "b"], {})
        return "".join(file.sha256 for file in candidate.model)

    first = aggregated(tree)
    copy = Played(tmp_path / "copy" / "world.yaml")
    assert aggregated(tree) == first != aggregated(copy), "the copy has drawn another key"


@pytest.mark.parametrize(("sections", "each"), [
    ((UPDATE, ON_MEAN), SIGMA * CLIP / 2),
    ((AT_SITES,), SIGMA * CLIP / math.sqrt(2)),
])  # fmt: skip
def test_a_contribution_names_its_noise_and_hands_up_no_moments(
    play: Play, sections: tuple[dict[str, Any], ...], each: float
) -> None:
    tree = region(play, *sections, rounds=3)
    tree.play()
    found = {one.site: one for one in updates_of(tree.run(), 1)}
    assert found["north"].noise == pytest.approx(each * math.sqrt(3)) and found["south"].noise == 0
    assert not found["north"].moments and not found["north"].residuals
    assert "noise" not in found["south"].model_dump()


def test_sites_add_noise_before_their_key_layers_leave_as_residuals(play: Play) -> None:
    tree, clean = play(), play()
    edit(tree.file.with_name("north.yaml"), update={"clip_norm": CLIP, "noise_multiplier": 0.01})
    tree.play()
    clean.play()
    noisy = {file.sha256 for one in updates_of(tree.run("north"), 2) for file in one.key_layers}
    plain = {file.sha256 for one in updates_of(clean.run("north"), 2) for file in one.key_layers}
    handed = {f.sha256 for r in updates_of(tree.run(), 1)[0].residuals for f in r.files}
    assert handed and handed <= noisy and not noisy & plain


def test_noise_adds_up() -> None:
    """Two independent noises of deviation 3 and 4, each with half the weight; then the mean's own."""
    two = {"a": update("a", noise=3.0), "b": update("b", clip_norm=2.0, noise_multiplier=2.0)}
    assert [noise_of(one) for one in two.values()] == [3.0, 4.0]
    assert added(two, {"a": 0.5, "b": 0.5}, Server()) == pytest.approx(2.5)
    assert added(two, {"a": 0.5, "b": 0.5}, Server(lr=0.5, noise_multiplier=6.0)) == pytest.approx(3.25)


def test_weights_fall_with_noise() -> None:
    """Two members of signal 3; one also has noise of norm 4, in a backbone of 100 elements."""
    two = {"a": update("a", norm=3.0), "b": update("b", norm=5.0, noise=0.4)}
    shares = Shares(Server(weights="uniform", discount_noise=True), two, 100)
    assert shares.shares == pytest.approx({"a": 1 / 1.36, "b": 0.36 / 1.36})
    assert shares.weights == shares.shares and shares.plain
    assert Shares(Server(weights="uniform"), two, 100).shares == {"a": 0.5, "b": 0.5}
    quiet = {name: one.model_copy(update={"noise": 0.0}) for name, one in two.items()}
    for weights in ("uniform", "tokens"):
        discounted = Shares(Server(weights=weights, discount_noise=True), quiet, 100)
        assert discounted.shares == Shares(Server(weights=weights), quiet, 100).shares


@pytest.mark.parametrize("norm", [0.0, 4.0])
def test_members_of_nothing_but_noise_count_equally(norm: float) -> None:
    loud = {name: update(name, norm=norm, noise=0.4) for name in "ab"}
    assert Shares(Server(weights="uniform", discount_noise=True), loud, 100).shares == {"a": 0.5, "b": 0.5}


def test_a_backbone_takes_less_of_one_region_s_noise(play: Play) -> None:
    trees = [region(play), region(play, AT_SITES), region(play, AT_SITES)]
    edit(trees[2].file, server={"discount_noise": True, "weights": "uniform"})
    for tree in trees:
        tree.play()
    keys = names_in(trees[0].chain()[1].key_layers)

    def error(tree: Played) -> float:
        found = difference(tree.run(), trees[0].run(), 1)
        return float(np.linalg.norm(np.concatenate([found[name] for name in found if name not in keys])))

    _, plain, remedied = map(error, trees)
    weights = {name: ref.weight for name, ref in trees[2].chain()[1].updates.items()}
    assert weights["south"] > 0.9 and sum(weights.values()) == pytest.approx(1)
    assert remedied < 0.5 * plain
