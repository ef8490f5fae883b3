"""A site with key layers trains from its own entry, and sends the backbone encoded and the key layers whole."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from photon_core.model.init import initial_model
from photon_core.model.key_layers import key_layers, names_in
from photon_core.model.shapes import moment_shapes
from photon_core.run.opening import open_run
from photon_core.run.run import run_of
from photon_core.run.start import Initial
from photon_core.tensors.shards import all_tensors
from photon_core.training import callback as round_callback
from photon_core.training.entering import enter
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from photon_core.update.codecs.registry import get_codec
from photon_core.update.trained import Trained
from photon_core.update.upload import upload_update
from schemas.federation import Federation
from schemas.manifests import Attention
from schemas.sections.update import Update
from schemas.sections.worldlm import WorldLM
from schemas.view import view_of
from tests.photon_core.training.test_train import Arrays, apply, make_job, silent, theta_zero, uninterrupted

Make = Callable[..., Federation]
ENTRY = {"blocks.1": Attention(rows=["own", "parent"], scores=[1.0, 0.25], weights=[0.75, 0.25], tau=0.5)}


def with_key_layers(federation: Federation, keys: Any = 1, **update: Any) -> Federation:
    """The same federation with key layers; its last block is one."""
    changed = {"worldlm": WorldLM(key_layers=keys), "update": Update(**update)}
    return federation.model_copy(update=changed)


def entry_of(theta: Arrays) -> Arrays:
    """A model of the same backbone whose key layer is the site's own, somewhere else."""
    rng = np.random.default_rng(7)
    return {
        name: value + np.float32(0.02) * rng.standard_normal(value.shape, np.float32)
        if name.startswith("blocks.1.")
        else value
        for name, value in theta.items()
    }


def job_from(federation: Federation, theta: Arrays, folder: Path, t: int = 1, **options: Any) -> LocalJob:
    """A job whose theta lies in a file of the backbone and one of the key layer."""
    job = make_job(federation, theta, folder, t, **options)
    key = names_in(key_layers(federation))
    files = [folder / f"{part}-{t}.safetensors" for part in ("backbone", "key")]
    for file, of_key in zip(files, (False, True), strict=True):
        save_file({name: value for name, value in theta.items() if (name in key) == of_key}, file)
    return dataclasses.replace(job, base_files=[str(file) for file in files], entry_sha256="e", entry=ENTRY)


def sent(trained: Trained, base: Arrays) -> tuple[Arrays, Arrays]:
    """The backbone as the coordinator decodes it against the committed model, and the key layers as they come."""
    decode, found, whole = get_codec(trained.codec).decode, {}, {}
    for entry in trained.files:
        found.update(load_file(Path(trained.folder, entry.path)))
    for entry in trained.key_layers:
        assert Path(entry.path).name.startswith("blocks.1-0000")
        whole.update(load_file(Path(trained.folder, entry.path)))
    return {name: decode(base[name], found[name]) for name in found}, whole


def equal(a: Arrays, b: Arrays, names: Any = None) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in (a if names is None else names))


def norm(a: Arrays, b: Arrays) -> float:
    return math.sqrt(sum(float(((a[name].astype(np.float64) - b[name]) ** 2).sum()) for name in a))


@pytest.fixture
def ends(make_site: Make, tmp_path: Path) -> tuple[Federation, Arrays, Arrays, Arrays]:
    """A federation, its committed model, a site's entry, and what training makes of the entry: of a plain run."""
    federation = make_site()
    base = theta_zero(federation)
    entry = entry_of(base)
    (tmp_path / "plain").mkdir()
    sites = [site.model_copy(update={"state_dir": str(tmp_path / "plain/alpha")}) for site in federation.sites]
    (tmp_path / "plain/alpha").mkdir()
    (tmp_path / "plain/alpha/data").symlink_to(tmp_path / "alpha/data")
    plain = train(make_job(federation.model_copy(update={"sites": sites}), entry, tmp_path / "plain"), silent)
    return federation, base, entry, apply(entry, plain)


Ends = tuple[Federation, Arrays, Arrays, Arrays]


def test_backbone_against_the_base_and_key_layers_whole(ends: Ends, tmp_path: Path) -> None:
    federation, base, entry, end = ends
    federation = with_key_layers(federation)
    trained = train(job_from(federation, entry, tmp_path), silent)
    backbone, whole = sent(trained, base)
    assert backbone.keys() | whole.keys() == base.keys() and not backbone.keys() & whole.keys()
    assert whole.keys() == names_in(key_layers(federation))
    assert equal(backbone, end) and equal(whole, end), "to the bit what a plain training makes of the entry"
    assert {tensor.dtype for tensor in all_tensors(trained.key_layers).values()} == {"F32"}
    assert (trained.base_sha256, trained.entry_sha256, trained.entry) == ("hash-1", "e", ENTRY)
    assert trained.metrics["delta_norm"] == pytest.approx(norm(backbone, entry), rel=1e-5)
    assert trained.metrics["key_delta_norm"] == pytest.approx(norm(whole, entry), rel=1e-5)


def test_a_lossy_codec_leaves_key_layers_exact(ends: Ends, tmp_path: Path) -> None:
    federation, base, entry, end = ends
    federation = with_key_layers(federation, codec="topk", block=64, top_k=0.125)
    trained = train(job_from(federation, entry, tmp_path), silent)
    backbone, whole = sent(trained, base)
    assert equal(whole, end) and not equal(backbone, end)
    feedback = torch.load(Path(trained.folder, "training.pt"), weights_only=True)["feedback"]
    assert feedback.keys() == backbone.keys(), "nothing of a key layer is lost"


def test_clipping_counts_from_the_entry_over_all_tensors(ends: Ends, tmp_path: Path) -> None:
    federation, base, entry, end = ends
    length = norm(end, entry)
    assert norm(end, base) > 2 * length, "the personal offset is no change of this round"
    federation = with_key_layers(federation, clip_norm=length / 2)
    trained = train(job_from(federation, entry, tmp_path), silent)
    backbone, whole = sent(trained, base)
    assert trained.metrics["unclipped_norm"] == pytest.approx(length, rel=1e-5)
    assert math.hypot(norm(backbone, entry), norm(whole, entry)) == pytest.approx(length / 2, rel=1e-4)
    for name, value in {**backbone, **whole}.items():
        expected = entry[name] + 0.5 * (end[name] - entry[name])
        assert np.allclose(value, expected, rtol=0, atol=1e-6), name


def test_noise_is_added_to_the_clipped_change_since_entry(ends: Ends, tmp_path: Path) -> None:
    federation, base, entry, end = ends
    clip = norm(end, entry) / 2
    federation = with_key_layers(federation, clip_norm=clip, noise_multiplier=0.5)
    trained = train(job_from(federation, entry, tmp_path), silent)
    _, whole = sent(trained, base)
    name = "blocks.1.ffn.up_proj.weight"
    noise = whole[name] - (entry[name] + 0.5 * (end[name] - entry[name]))
    assert noise.std() == pytest.approx(0.5 * clip, rel=0.1)
    again = train(job_from(federation, entry, tmp_path, attempt=2), silent)
    assert not equal(sent(again, base)[1], whole), "another attempt meets other noise"


def test_a_killed_training_goes_on_to_the_same_bits(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, base, entry, end = ends
    local = federation.local.model_copy(update={"checkpoint_steps": 2})
    job = job_from(with_key_layers(federation.model_copy(update={"local": local})), entry, tmp_path)
    monkeypatch.setattr(round_callback, "REPORT_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def report(values: dict[str, Any]) -> None:
        if values["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(job, report)
    resumed = train(job, silent)
    assert resumed.metrics["resumed_at_step"] == 2.0
    backbone, whole = sent(resumed, base)
    assert equal(backbone, end) and equal(whole, end)
    assert train(job, pytest.fail) == resumed, "a finished training is not repeated"
    other = train(dataclasses.replace(job, entry_sha256="another"), silent)
    assert "another" in other.entry_sha256 and "resumed_at_step" not in other.metrics


@pytest.mark.parametrize("optimizer", [{"lr": 3e-3}, {"name": "muon", "matrix_lr": 0.01, "lr": 3e-3}])
def test_moments_of_key_layers_stay_at_the_site(
    make_site: Make, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    """With one site the averaged moments are its own: three rounds are one uninterrupted run."""
    federation = with_key_layers(make_site(optimizer=optimizer, optimizer_state="average"))
    theta, moments = theta_zero(federation), []
    for t in range(1, 4):
        trained = train(job_from(federation, theta, tmp_path, t, moment_files=moments), silent)
        backbone, whole = sent(trained, theta)
        theta = {**backbone, **whole}
        moments = [str(Path(trained.folder, entry.path)) for entry in trained.moments]
        found = {name: tensor.shape for name, tensor in all_tensors(trained.moments).items()}
        key = names_in(key_layers(federation))
        assert found == moment_shapes(federation.model, federation.local.optimizer.name, key)
    expected = uninterrupted(federation, 15)
    assert all(np.array_equal(theta[name], expected[name]) for name in expected)


def test_moments_of_key_layers_are_zeros_where_the_site_has_none(make_site: Make, tmp_path: Path) -> None:
    """One that joins late takes the others' moments of the backbone, and begins those of its key layers."""
    federation = with_key_layers(make_site(optimizer_state="average", steps=1, schedule={}))
    theta = theta_zero(federation)
    first = train(job_from(federation, theta, tmp_path), silent)
    moments = [str(Path(first.folder, entry.path)) for entry in first.moments]
    joined = train(job_from(federation, theta, tmp_path, 2, resume=None, moment_files=moments), silent)
    state = torch.load(Path(joined.folder, "training.pt"), weights_only=True)["optimizer"]
    steps = [int(own["step"]) for own in state.values()]
    assert set(steps) == {1, 2} and steps.count(1) == len(names_in(key_layers(federation)))
    again = train(job_from(federation, theta, tmp_path, 2, attempt=2, moment_files=moments), silent)
    assert not equal(sent(joined, theta)[1], sent(again, theta)[1])


def test_every_parameter_may_be_of_a_key_layer(ends: Ends, tmp_path: Path) -> None:
    federation, _, entry, end = ends
    federation = with_key_layers(federation, ["wte", "wpe", "blocks", "norm_f"])
    job = make_job(federation, entry, tmp_path)
    trained = train(job, silent)
    assert trained.files == [] and trained.metrics["delta_norm"] == 0
    found = {n: v for e in trained.key_layers for n, v in load_file(Path(trained.folder, e.path)).items()}
    assert found.keys() == end.keys() and equal(found, end)


def test_from_the_store_to_the_store(make_site: Make, tmp_path: Path) -> None:
    """Enter, train, upload: the update names its backbone, its key layers and its entry; its files are whole."""
    federation = with_key_layers(make_site(steps=1, schedule={}))
    run, view = run_of(federation), view_of(federation, "alpha")
    open_run(run, federation, "0" * 64, lambda: Initial(initial_model(federation, tmp_path)))
    base = run.round(0)
    assert base is not None
    files = run.store.fetch_all(base.model, run.round_dir(0), tmp_path / "cache", 1)
    entry = enter(run, view, 1, 1, files)
    job = LocalJob(
        view, 1, 1, [str(path) for path in entry.files], base.model_sha256, 0, announce=True,
        entry_sha256=entry.sha256, entry=entry.attention,
    )  # fmt: skip
    announced: list[str] = []
    trained = train(job, lambda values: announced.append(values["file"]) if "file" in values else None)
    assert len(announced) == len(trained.files) + len(trained.key_layers) == 2
    upload_update(run, view, 1, trained)
    update = run.update(1, "alpha", 1)
    assert update is not None
    assert (update.base_sha256, update.entry_sha256, update.entry) == (base.model_sha256, base.model_sha256, {})
    assert all_tensors(update.key_layers).keys() == set(base.key_layers["blocks.1"])
    assert all_tensors(update.files).keys() == theta_zero(federation).keys() - set(base.key_layers["blocks.1"])
    for file in (*update.files, *update.key_layers):
        run.store.check(file, run.site_dir(1, "alpha", 1))
