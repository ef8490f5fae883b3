"""Averaged moments: the weighted mean, in any number of shards, and what a bad one is refused for."""

import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits
from photon_core.aggregation.moments import MomentSpec, average_moments, moments_for
from photon_core.aggregation.rules import moments_rule
from photon_core.errors import UpdateRejected
from photon_core.model.shapes import moment_shapes
from photon_core.run.opening import put_files
from photon_core.run.run import Run
from photon_core.store.store import Store
from photon_core.training.exchange import Theta, write_tensors
from photon_core.training.state.folder import UPDATE
from schemas.manifests import FileEntry, UpdateManifest
from schemas.sections.local import Optimizer
from schemas.sections.model import Model
from schemas.sections.server import Server

MODEL = Model(n_layers=1, d_model=16, n_heads=2, vocab_size=64, max_seq_len=8)
SPEC = MomentSpec(MODEL, Optimizer())
Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def draw(seed: int, optimizer: str) -> Arrays:
    random = np.random.default_rng(seed)
    shapes = moment_shapes(MODEL, optimizer)
    found = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in found:
        if name.startswith("exp_avg_sq."):
            found[name] = np.maximum(found[name] ** 2, found[name.replace("_sq.", ".")] ** 2)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(str(tmp_path / "store")), "r")


def averaged(
    run: Run,
    updates: dict[str, UpdateManifest],
    weights: dict[str, float],
    spec: MomentSpec,
    server: Server | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[FileEntry]:
    return average_moments(run, 1, updates, moments_rule(server or Server(), weights), spec, limits).files


def update(run: Run, folder: Path, site: str, moments: Arrays) -> UpdateManifest:
    path = folder / f"moments-{site}.safetensors"
    save_file(moments, path)
    return UpdateManifest(
        run="r", round=1, site=site, attempt=1, base_sha256="", codec="float32", files=[], tokens=1, steps=1,
        moments=put_files(run, run.site_dir(1, site, 1), [path]),
        metrics={"train_loss": 1.0}, data_sha256="", versions={}, previous_sha256="",
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shard", [1 << 12, 1 << 30])
def test_the_weighted_mean(run: Run, tmp_path: Path, optimizer: str, shard: int) -> None:
    sites = {site: draw(seed, optimizer) for seed, site in enumerate("abc")}
    updates = {site: update(run, tmp_path, site, moments) for site, moments in sites.items()}
    weights = {"a": 0.5, "b": 0.2, "c": 0.3}
    limits = Limits(shard_bytes=shard)
    files = averaged(run, updates, weights, MomentSpec(MODEL, Optimizer(name=optimizer)), limits=limits)
    found: Arrays = {}
    for entry in files:
        assert entry.path.startswith("moments/")
        found |= load_file(run.store.fetch(entry, run.round_dir(1), tmp_path / "cache"))
    assert len(files) > 1 or shard > 1 << 12
    assert found.keys() == moment_shapes(MODEL, optimizer).keys()
    for name, value in found.items():
        expected = sum(weights[site] * sites[site][name].astype(np.float64) for site in sites)
        assert np.allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("sent", ["ab", "a", ""])
def test_in_bfloat16(run: Run, tmp_path: Path, sent: str) -> None:
    """The mean of what the sites sent, each in its dtype, rounded once, as torch rounds."""
    sites = {site: draw(seed, "muon") for seed, site in enumerate("ab")}
    updates = {}
    for site, moments in sites.items():
        (tmp_path / site / UPDATE).mkdir(parents=True)
        tensors = {name: torch.from_numpy(value) for name, value in moments.items()}
        dtype = "bfloat16" if site in sent else "float32"
        files = write_tensors(tensors, tmp_path / site, 1 << 12, dtype)
        put = put_files(run, run.site_dir(1, site, 1), [tmp_path / site / entry.path for entry in files])
        updates[site] = update(run, tmp_path, site, moments).model_copy(update={"moments": put})
        if site in sent:
            sites[site] = {name: value.bfloat16().float().numpy() for name, value in tensors.items()}
    weights = {"a": 0.25, "b": 0.75}
    spec = MomentSpec(MODEL, Optimizer(name="muon"), "bfloat16")
    files = averaged(run, updates, weights, spec, limits=Limits(shard_bytes=1 << 12))
    paths = [str(run.store.fetch(entry, run.round_dir(1), tmp_path / "cache")) for entry in files]
    found = Theta(paths, MODEL, moment_shapes(MODEL, "muon")).tensors()
    for name, value in found.items():
        mean = torch.from_numpy(sum(weights[site] * sites[site][name].astype(np.float64) for site in sites))
        assert torch.equal(value, value.bfloat16().float())
        torch.testing.assert_close(value.double(), mean, rtol=2**-8, atol=1e-7)
    assert {tensor.dtype for entry in files for tensor in entry.tensors.values()} == {"BF16"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_pass_as_bfloat16(run: Run, tmp_path: Path, bad: float) -> None:
    moments = draw(1, "adamw")
    moments["exp_avg_sq.wpe.weight"][0] = bad
    (tmp_path / UPDATE).mkdir()
    tensors = {name: torch.from_numpy(value) for name, value in moments.items()}
    files = write_tensors(tensors, tmp_path, dtype="bfloat16")
    put = put_files(run, run.site_dir(1, "a", 1), [tmp_path / entry.path for entry in files])
    updates = {"a": update(run, tmp_path, "a", moments).model_copy(update={"moments": put})}
    with pytest.raises(UpdateRejected, match=r"'exp_avg_sq\.wpe\.weight' is not finite"):
        averaged(run, updates, {"a": 1.0}, MomentSpec(MODEL, Optimizer(), "bfloat16"))


def mean_of(
    run: Run, folder: Path, sites: dict[str, Arrays], server: Server, optimizer: Literal["adamw", "muon"] = "adamw"
) -> Arrays:
    updates = {site: update(run, folder, site, moments) for site, moments in sites.items()}
    weights = dict.fromkeys(sites, 1 / len(sites))
    found: Arrays = {}
    for entry in averaged(run, updates, weights, MomentSpec(MODEL, Optimizer(name=optimizer)), server):
        found |= load_file(run.store.fetch(entry, run.round_dir(1), folder / "cache"))
    return found


@pytest.mark.parametrize("server", [Server(mean="median"), Server(mean="trimmed", trim=0.2)])
def test_a_robust_mean_is_the_moments_mean_too(run: Run, tmp_path: Path, server: Server) -> None:
    sites = {site: draw(seed, "adamw") for seed, site in enumerate("abcde")}
    good = {name: np.stack([moments[name] for moments in sites.values()]) for name in sites["a"]}
    bad = {"exp_avg": 4.0, "exp_avg_sq": 16.0}
    sites["e"] = {name: np.full_like(value, bad[name.partition(".")[0]]) for name, value in sites["e"].items()}
    found = mean_of(run, tmp_path, sites, server)
    for name, value in found.items():
        assert (value <= good[name][:4].max(axis=0)).all() and (value >= good[name][:4].min(axis=0)).all()
    plain = mean_of(run, tmp_path, sites, Server())
    assert min(plain[name].mean() for name in plain) > 0.3, "carried away"


def test_a_mean_that_overflows_is_the_largest_ones_fault(run: Run, tmp_path: Path) -> None:
    sites, name = {site: draw(seed, "muon") for seed, site in enumerate("ab")}, "blocks.0.ffn.up_proj.weight"
    for site, value in (("a", 3e38), ("b", -3.3e38)):
        sites[site][f"momentum.{name}"][:] = value
    with pytest.raises(UpdateRejected, match=rf"'momentum\.{name}' is so large that the mean is not") as caught:
        mean_of(run, tmp_path, sites, Server(), "muon")
    assert caught.value.site == "b"


def test_what_is_refused(run: Run, tmp_path: Path) -> None:
    good = draw(1, "adamw")

    def refused(match: str, optimizer: str = "adamw", **changes: Any) -> None:
        moments = {**good, **{f"{name}.wpe.weight": value for name, value in changes.items()}}
        updates = {
            "a": update(run, tmp_path, "a", good),
            "b": update(run, tmp_path, "b", {name: value for name, value in moments.items() if value is not None}),
        }
        with pytest.raises(UpdateRejected, match=match) as caught:
            averaged(run, updates, {"a": 0.5, "b": 0.5}, MomentSpec(MODEL, Optimizer(name=optimizer)))
        assert caught.value.site == "b" or optimizer == "muon"

    wpe = good["exp_avg.wpe.weight"]
    refused("the optimizer's moment 'exp_avg.wpe.weight' is missing", exp_avg=None)
    refused("'exp_avg.wpe.weight' is not one of the optimizer's, or has another shape", exp_avg=wpe[:-1])
    refused("'momentum.wpe.weight' is not one of", momentum=wpe)
    refused("'exp_avg.wpe.weight' is not finite", exp_avg=wpe * np.float32("nan"))
    refused("'exp_avg_sq.wpe.weight' is not finite, or negative", exp_avg_sq=-np.ones_like(wpe))
    refused("'exp_avg.blocks.0.attn.Wqkv.weight' is not one of the optimizer's", optimizer="muon")


def test_no_bit_depends_on_threads(run: Run, tmp_path: Path) -> None:
    sites = {site: draw(seed, "adamw") for seed, site in enumerate("abc")}
    updates = {site: update(run, tmp_path, site, moments) for site, moments in sites.items()}
    weights = {"a": 0.5, "b": 0.2, "c": 0.3}
    found = [
        averaged(run, updates, weights, SPEC, limits=Limits(shard_bytes=1 << 14, threads=n)) for n in (0, 1, 3)
    ]
    assert len({tuple(entry.sha256 for entry in files) for files in found}) == 1


def test_damaged_files_are_their_sites_fault(run: Run, tmp_path: Path) -> None:
    updates = {site: update(run, tmp_path, site, draw(seed, "adamw")) for seed, site in enumerate("ab")}
    path = tmp_path / "store" / run.site_dir(1, "b", 1) / updates["b"].moments[0].path
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.unlink()  # the upload linked it
    path.write_bytes(data)
    with pytest.raises(UpdateRejected, match="blake3") as caught:
        averaged(run, updates, {"a": 0.5, "b": 0.5}, SPEC)
    assert caught.value.site == "b"
    assert run.store.ls(f"{run.round_dir(1)}/moments") == []


def test_those_of_another_optimizer_are_not_gone_on_from(run: Run, tmp_path: Path) -> None:
    files = update(run, tmp_path, "a", draw(1, "adamw")).moments
    assert moments_for(files, MODEL, "adamw") == files
    assert moments_for(files, MODEL, "muon") == []
    assert moments_for([], MODEL, "adamw") == []


def test_memory_does_not_grow_with_the_sites(run: Run, tmp_path: Path) -> None:
    """Checked and averaged in one pass, piece by piece: 12 sites of 4 MB each take no more than 3 do."""
    large = Model(n_layers=1, d_model=128, n_heads=2, vocab_size=2048, max_seq_len=64)
    moments = {name: np.ones(shape, np.float32) for name, shape in moment_shapes(large, "adamw").items()}
    updates, peaks = {f"s{n:02d}": update(run, tmp_path, f"s{n:02d}", moments) for n in range(12)}, []
    for count in (3, 3, 12):  # what the first one imports stays
        some = dict(sorted(updates.items())[:count])
        tracemalloc.start()
        try:
            spec, alike = MomentSpec(large, Optimizer()), dict.fromkeys(some, 1 / count)
            averaged(run, some, alike, spec, limits=Limits(threads=0))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 16 << 20, peaks
