"""Point 5: a site whose averaged moments are no honest optimizer's is excluded by name, and the federation keeps
learning; every honest site's are used. Real training, in rounds through the store."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from photon_core.aggregation.candidate import RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.round import aggregate_round
from photon_core.data.tokenizer import load_tokenizer
from photon_core.run.opening import open_run
from photon_core.run.run import Run, run_of
from photon_core.run.start import make_initial
from photon_core.run.updates import last_contribution
from photon_core.training.exchange import write_tensors
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from photon_core.update.trained import Trained
from photon_core.update.upload import upload_update
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import view_of
from tests.photon_core.training.conftest import make_federation, write_site

EVIL, HONEST = "alpha", ("beta", "delta", "gamma")  # the first in every order
SITES = (EVIL, *HONEST)
BETAS = (0.9, 0.95)
Arrays = dict[str, np.ndarray[Any, Any]]
Poison = Callable[[Arrays], None]


def federation(folder: Path, sites: Mapping[str, Mapping[str, Any]], **sections: Any) -> Federation:
    made = make_federation(folder, tuple(sites))
    local = made.local.model_dump() | {"optimizer_state": "average"} | sections.pop("local", {})
    listed = [site.model_dump() | dict(sites[site.name]) for site in made.sites]
    rounds = {"count": 9, "quorum": min(3, len(sites))}
    found = made.model_dump() | {"local": local, "rounds": rounds, "sites": listed} | sections
    setting = Federation.model_validate(found)
    for number, site in enumerate(sites):
        write_site(setting, site, 40, number)
    return setting


def opened(setting: Federation, folder: Path) -> Run:
    folder.mkdir(exist_ok=True)
    open_run(run_of(setting), setting, load_tokenizer("bytes").sha256, lambda: make_initial(setting, folder))
    return run_of(setting)


def trained(run: Run, setting: Federation, site: str, t: int) -> Trained:
    base = run.round(t - 1)
    assert base is not None
    place = Path(setting.store) / run.round_dir(t - 1)
    model, moments = ([str(place / entry.path) for entry in files] for files in (base.model, base.moments))
    resume = last_contribution(run, site, t)
    job = LocalJob(
        view_of(setting, site), t, 1, model, base.model_sha256, base.global_step, resume, moment_files=moments
    )
    return train(job, lambda _: None)


def moments_of(found: Trained) -> Arrays:
    arrays: Arrays = {}
    for entry in found.moments:
        arrays |= load_file(Path(found.folder, entry.path))
    return arrays


def with_moments(found: Trained, arrays: Arrays, dtype: str = "float32") -> Trained:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    for entry in found.moments:
        Path(found.folder, entry.path).unlink()  # the upload may have linked it
    return dataclasses.replace(found, moments=write_tensors(tensors, Path(found.folder), dtype=dtype))


def finish(run: Run, setting: Federation, t: int) -> RoundManifest:
    sampled = sorted(setting.active)
    return commit(run, setting, aggregate_round(run, setting, t, sampled, {}), RoundLog(sampled))


def everywhere(kind: str, value: float) -> Poison:
    def change(moments: Arrays) -> None:
        for name in moments:
            if name.startswith(f"{kind}."):
                moments[name][:] = value

    return change


def both(first: float, second: float) -> Poison:
    def change(moments: Arrays) -> None:
        everywhere("exp_avg", first)(moments)
        everywhere("exp_avg_sq", second)(moments)

    return change


def scaled(factors: Mapping[str, float]) -> Poison:
    def change(moments: Arrays) -> None:
        for name, factor in factors.items():
            moments[name] *= np.float32(factor)

    return change


def element(moments: Arrays) -> None:
    """One number of an embedding, as large as its second moment lets it be."""
    moments["exp_avg.wte.weight"][3, 5], moments["exp_avg_sq.wte.weight"][3, 5] = 1e6, 1e12


def vanished(moments: Arrays) -> None:
    """One column's second moments, so that the first step after it is as long as one likes."""
    moments["exp_avg_sq.wpe.weight"][:, 0] = 0


ADAMW: dict[str, tuple[Poison, str]] = {
    "second moments that stop learning": (everywhere("exp_avg_sq", 1e30), "is out of line: its size is"),
    "first moments that jump": (everywhere("exp_avg", 1e6), "is too large for its 'exp_avg_sq'"),
    "both, as large as each other": (both(1e6, 1e12), "is out of line: its size is"),
    "one element": (element, "moment 'exp_avg.wte.weight' is out of line"),
    "one small tensor": (
        scaled({"exp_avg_sq.norm_f.bias": 1e4}),
        "moment 'exp_avg_sq.norm_f.bias' is out of line: its size is",
    ),
    "a hundred times": (scaled({"exp_avg.wte.weight": 100.0}), "is too large for its 'exp_avg_sq'"),
    "second moments of nothing": (vanished, "exp_avg.wpe.weight' is too large for its 'exp_avg_sq': its square"),
    "negative": (everywhere("exp_avg_sq", -1e-3), "is not finite, or negative"),
    "not finite": (everywhere("exp_avg", float("nan")), "is not finite, or negative"),
    "so large that a square is not finite": (both(1e30, 3e38), "is too large for its 'exp_avg_sq'"),
}
MUON: dict[str, tuple[Poison, str]] = {
    "momentum": (everywhere("momentum", 1e6), "is out of line: its size is"),
    "one matrix": (
        scaled({"momentum.blocks.1.attn.Wqkv.weight": 30.0}),
        "moment 'momentum.blocks.1.attn.Wqkv.weight' is out of line",
    ),
}


@pytest.fixture(scope="module")
def second_round(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Federation, Trained, Path]]:
    """Of an optimizer: a federation after its first round, in which all but one site have done the second."""
    made: dict[str, tuple[Federation, Trained, Path]] = {}

    def make(optimizer: str) -> tuple[Federation, Trained, Path]:
        if optimizer not in made:
            folder = tmp_path_factory.mktemp(optimizer)
            setting = federation(
                folder, {s: {} for s in SITES}, local={"optimizer": {"name": optimizer, "lr": 3e-3}}
            )
            run = opened(setting, folder / "initial")
            for site in SITES:
                upload_update(run, view_of(setting, site), 1, trained(run, setting, site, 1))
            assert sorted(finish(run, setting, 1).updates) == sorted(SITES)
            for site in HONEST:
                upload_update(run, view_of(setting, site), 2, trained(run, setting, site, 2))
            made[optimizer] = setting, trained(run, setting, EVIL, 2), folder
        return made[optimizer]

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("optimizer", "case"), [*(("adamw", c) for c in ADAMW), *(("muon", c) for c in MUON)])
def test_poisoned_moments_are_left_out_by_name(
    second_round: Callable[[str], tuple[Federation, Trained, Path]],
    tmp_path: Path,
    optimizer: str,
    case: str,
    dtype: str,
) -> None:
    setting, honest, folder = second_round(optimizer)
    poison, said = (ADAMW if optimizer == "adamw" else MUON)[case]
    shutil.copytree(folder / "store", tmp_path / "store")
    shutil.copytree(honest.folder, tmp_path / "trained")
    setting = setting.model_copy(update={"store": str(tmp_path / "store")})
    run, found = run_of(setting), dataclasses.replace(honest, folder=str(tmp_path / "trained"))
    moments = moments_of(found)
    poison(moments)
    upload_update(run, view_of(setting, EVIL), 2, with_moments(found, moments, dtype))
    manifest = finish(run, setting, 2)
    assert sorted(manifest.updates) == sorted(HONEST)
    assert said in manifest.left_out[EVIL]
    largest = max(
        float(np.abs(value).max())
        for entry in manifest.moments
        for value in load_file(tmp_path / "store" / run.round_dir(2) / entry.path).values()
    )
    assert 0 < largest < 1, "all continue from the others' mean"


def test_a_federation_whose_moments_are_poisoned_in_every_round_learns_on(tmp_path: Path) -> None:
    setting = federation(tmp_path, {site: {} for site in SITES}, local={"optimizer": {"lr": 3e-3}})
    run, losses = opened(setting, tmp_path / "initial"), []
    poisons = [everywhere("exp_avg_sq", 1e30), both(1e6, 1e12), everywhere("exp_avg", 1e6), element]
    for t, poison in enumerate(poisons, 1):
        for site in HONEST:
            upload_update(run, view_of(setting, site), t, trained(run, setting, site, t))
        evil = trained(run, setting, EVIL, t)
        moments = moments_of(evil)
        poison(moments)
        upload_update(run, view_of(setting, EVIL), t, with_moments(evil, moments))
        manifest = finish(run, setting, t)
        assert list(manifest.left_out) == [EVIL] and "exp_avg" in manifest.left_out[EVIL]
        assert manifest.guard == []
        losses.append(manifest.metrics["train_loss"])
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.2


def test_honest_sites_are_never_left_out(tmp_path: Path) -> None:
    """Unlike texts, unlike numbers of steps, a site that joins late, bfloat16 moments, warm-up, weight decay."""
    sites: dict[str, dict[str, Any]] = {
        "a": {"steps": 1},
        "b": {},
        "c": {"steps": 2},
        "d": {},
        "late": {"paused": True},
    }
    local = {"optimizer": {"name": "muon", "lr": 1e-2, "weight_decay": 0.1}, "clip_norm": None, "batch_size": 1}
    setting = federation(tmp_path, sites, local=local, update={"moments_dtype": "bfloat16"})
    run = opened(setting, tmp_path / "initial")
    for t in range(1, 5):
        if t == 3:
            joined = [site.model_copy(update={"paused": False}) for site in setting.sites]
            setting = setting.model_copy(update={"sites": joined})
        for site in setting.active:
            upload_update(run, view_of(setting, site), t, trained(run, setting, site, t))
        manifest = finish(run, setting, t)
        assert manifest.left_out == {} and sorted(manifest.updates) == sorted(setting.active)
        assert manifest.moment_ratio == pytest.approx(1.357, abs=1e-3)
        assert manifest.moment_sizes.keys() == {n for entry in manifest.moments for n in entry.tensors}


def test_a_site_that_makes_many_more_steps_than_most_is_honest(tmp_path: Path) -> None:
    """Most sites make one step of the file's 40, by time limits say: moments grow with the steps."""
    few: dict[str, dict[str, Any]] = {"a": {"steps": 1}, "b": {"steps": 1}, "c": {}}
    local = {"optimizer": {"name": "muon", "lr": 1e-2}, "batch_size": 1, "steps": 40}
    setting = federation(tmp_path, few, local=local, rounds={"count": 9, "quorum": 1})
    run = opened(setting, tmp_path / "initial")
    for t in (1, 2):
        for site in few:
            found = trained(run, setting, site, t)
            if (site, t) == ("b", 2):
                moments = moments_of(found)
                scaled({"exp_avg_sq.norm_f.bias": 1e4})(moments)
                found = with_moments(found, moments)
            upload_update(run, view_of(setting, site), t, found)
        assert list(finish(run, setting, t).left_out) == ([] if t == 1 else ["b"])


def test_one_site_does_not_loosen_the_bound_where_sites_bring_moments_that_they_have_kept(tmp_path: Path) -> None:
    """The first round after keep has no bound of m^2 / v for a site; its mean has one all the same."""
    kept = federation(tmp_path, {site: {} for site in SITES}, local={"optimizer_state": "keep"})
    asked = federation(tmp_path, {site: {} for site in SITES})
    run = opened(kept, tmp_path / "initial")
    for t, setting in ((1, kept), (2, asked), (3, asked)):
        for site in SITES:
            found = trained(run, setting, site, t)
            if site == EVIL and t > 1:
                moments = moments_of(found)
                moments["exp_avg.wte.weight"][3, 5] = 3 * np.linalg.norm(moments["exp_avg.wte.weight"])
                moments["exp_avg_sq.wte.weight"][3, 5] = 0
                found = with_moments(found, moments)
            upload_update(run, view_of(setting, site), t, found)
        manifest = finish(run, setting, t)
        assert list(manifest.left_out) == ([EVIL] if t == 3 else [])
        assert manifest.moment_ratio <= 1.4
    assert "'exp_avg.wte.weight' is too large for its 'exp_avg_sq'" in manifest.left_out[EVIL]


def after(
    steps: int, gradients: Callable[[int], float], betas: tuple[float, float] = BETAS
) -> tuple[float, float]:
    """AdamW's moments of one number after these gradients, from zeros."""
    first = second = 0.0
    for step in range(steps):
        first = betas[0] * first + (1 - betas[0]) * gradients(step)
        second = betas[1] * second + (1 - betas[1]) * gradients(step) ** 2
    return first, second


def hardest(betas: tuple[float, float]) -> Callable[[int], float]:
    """Gradients whose moments reach the bound: each a multiple of the one before (Cauchy-Schwarz, with =)."""
    return lambda step: (betas[1] / betas[0]) ** step


def test_gradients_that_come_next_to_the_bound_are_honest(tmp_path: Path) -> None:
    """A first round of a constant gradient, where m^2 / v reaches 1.2 after 20 steps, and of growing ones."""
    constant, growing = after(20, lambda _: 1.0), after(200, hardest(BETAS))
    assert constant[0] ** 2 / constant[1] == pytest.approx(1.2, abs=0.01)
    assert growing[0] ** 2 / growing[1] == pytest.approx(1.357, abs=0.001)
    scale = 1 / growing[0]
    setting = federation(tmp_path, {site: {} for site in SITES})
    rounded = setting.update.model_copy(update={"moments_dtype": "bfloat16"})
    sent = setting.model_copy(update={"update": rounded})
    run = opened(setting, tmp_path / "initial")
    for site in SITES:
        found = trained(run, setting, site, 1)
        moments = moments_of(found)
        for name in [name for name in moments if name.startswith("exp_avg.")]:
            sizes = 10.0 ** np.random.default_rng(len(name)).uniform(-12, 0, moments[name].shape)
            first, second = constant if site in HONEST[:2] else (growing[0] * scale, growing[1] * scale**2)
            moments[name] = (sizes * first).astype(np.float32)
            moments[name.replace("exp_avg.", "exp_avg_sq.")] = (sizes**2 * second).astype(np.float32)
        upload_update(run, view_of(sent, site), 1, with_moments(found, moments, "bfloat16"))
    assert finish(run, sent, 1).left_out == {}


def test_other_betas_than_the_moments_were_made_with_are_no_crime(tmp_path: Path) -> None:
    """Under betas of 0.9 and 0.999, m^2 / v reaches 53; the common moments keep it after an edit to 0.95."""
    old = (0.9, 0.999)
    first, second = after(400, hardest(old), old)
    ratio = first**2 / second
    assert ratio > 50
    setting = federation(tmp_path, {s: {} for s in SITES}, local={"optimizer": {"lr": 3e-3, "betas": old}})
    edited = federation(tmp_path, {s: {} for s in SITES}, local={"optimizer": {"lr": 3e-3, "betas": BETAS}})
    run, ratios = opened(setting, tmp_path / "initial"), []
    for t, asked in ((1, setting), (2, edited), (3, edited)):
        for site in SITES:
            found = trained(run, asked, site, t)
            moments = moments_of(found)
            if t == 1:
                for name in [name for name in moments if name.startswith("exp_avg.")]:
                    moments[name.replace("exp_avg.", "exp_avg_sq.")] = moments[name] ** 2 / np.float32(ratio)
            upload_update(run, view_of(asked, site), t, with_moments(found, moments))
        manifest = finish(run, asked, t)
        assert manifest.left_out == {}
        ratios.append(manifest.moment_ratio)
    assert ratios == pytest.approx([52.86, 45.27, 38.80], abs=0.01)


def test_of_two_sites_the_round_before_is_all_that_moments_are_held_to(tmp_path: Path) -> None:
    setting = federation(tmp_path, {"a": {}, "b": {}}, rounds={"count": 9, "quorum": 1})
    run = opened(setting, tmp_path / "initial")
    for t in (1, 2, 3):
        for site in ("a", "b"):
            found = trained(run, setting, site, t)
            moments = moments_of(found)
            if site == "b" and t > 1:
                both(1e3, 1e30)(moments) if t == 2 else everywhere("exp_avg", 1e6)(moments)
            upload_update(run, view_of(setting, site), t, with_moments(found, moments))
        manifest = finish(run, setting, t)
        assert sorted(manifest.updates) == (["a", "b"] if t == 1 else ["a"])
        if t == 2:
            assert "moments 'exp_avg' are out of line" in manifest.left_out["b"]
            assert "times the round before's" in manifest.left_out["b"]
