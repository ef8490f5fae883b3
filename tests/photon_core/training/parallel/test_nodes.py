"""A federation inside the site equals two sites of the same parts, averaged by the server."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from photon_core.aggregation.means import token_weights, weighted_mean
from photon_core.errors import ChildFailed, FederationError, UpdateRejected
from photon_core.hardware.parallelism import choose_infra
from photon_core.model.key_layers import key_layers
from photon_core.tensors.shards import all_tensors
from photon_core.training.job import LocalJob
from photon_core.training.parallel import nodes as nodes_module
from photon_core.training.parallel.nodes import train_node
from photon_core.training.train import train
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.sections.hardware import Hardware
from schemas.sections.worldlm import WorldLM
from schemas.view import view_of
from tests.photon_core.training.conftest import make_federation, write_site
from tests.photon_core.training.test_train import apply, make_job, said, samples, silent, theta_zero
from tests.photon_core.training.trail import locate
from tests.shared_memory import left_behind

APART = Hardware(nodes=2, tflops=1, interconnect=1e-9)
STREAMS = ("news", "code")


def make_site(folder: Path, sequences: int = 31, **local: Any) -> Federation:
    """A site of two nodes with slow links; its two streams have sequences that two nodes cannot share evenly."""
    federation = make_federation(folder, streams=STREAMS, **local)
    write_site(federation, "alpha", sequences)
    return with_hardware(federation, APART)


def with_hardware(federation: Federation, hardware: Hardware | None) -> Federation:
    sites = [site.model_copy(update={"hardware": hardware}) for site in federation.sites]
    return federation.model_copy(update={"sites": sites})


def rounds(federation: Federation, folder: Path, count: int = 2) -> tuple[list[Any], list[Trained]]:
    thetas, results = [theta_zero(federation)], []
    for t in range(1, count + 1):
        results.append(train(make_job(federation, thetas[-1], folder, t), silent))
        thetas.append(apply(thetas[-1], results[-1]))
    return thetas, results


def test_it_equals_two_sites_of_the_same_parts(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    federation = make_site(tmp_path, optimizer_state="keep", clip_norm=0.5)
    assert choose_infra(view_of(federation, "alpha")).kind == "federation"
    reports: list[dict[str, Any]] = []
    first = train(make_job(federation, theta_zero(federation), tmp_path), reports.append)
    assert reports and {"step", "steps", "loss", "tokens"} <= reports[-1].keys()
    thetas, inside = rounds(federation, tmp_path)
    assert inside[0] == first, "finished work is not repeated"

    sites = make_federation(tmp_path / "server", ("one", "two"), STREAMS, clip_norm=0.5)
    for node, name in ((1, "one"), (2, "two")):  # the two sites have the nodes' parts as their data
        shutil.copytree(view_of(federation, "alpha").node(node).state_dir / "data", view_of(sites, name).data_dir)
        manifest = view_of(sites, name).data_dir / "data.json"
        manifest.write_text(manifest.read_text().replace('"site": "alpha"', f'"site": "{name}"'))
        for stream in STREAMS:
            valid = view_of(federation, "alpha").data_dir / stream / "valid"
            shutil.copytree(valid, view_of(sites, name).data_dir / stream / "valid")
    theta = theta_zero(sites)
    for t in (1, 2):
        job = make_job(sites, theta, tmp_path / "server", t)
        both = {name: train(replace(job, view=view_of(sites, name)), silent) for name in ("one", "two")}
        weights = list(token_weights({name: trained.tokens for name, trained in both.items()}).values())
        ends = [apply(theta, trained) for trained in both.values()]
        mean = {}
        for name in theta:
            rows = np.stack([end[name].reshape(-1) for end in ends])
            out = np.empty(rows.shape[1], np.float32)
            mean[name] = weighted_mean(rows, weights, out, np.empty_like(rows)).reshape(theta[name].shape)
        theta = mean
        scale = {name: np.abs(theta[name]).max() + 1e-6 for name in theta}
        assert max(np.abs(theta[n] - thetas[t][n]).max() / scale[n] for n in theta) < 1e-6, t
        trained = inside[t - 1]
        assert trained.tokens == sum(one.tokens for one in both.values()) and trained.steps == 5
        for key in ("train_loss", "gradient_norm", "activation_norm"):
            parts = [one.metrics[key] for one in both.values()]
            assert trained.metrics[key] == pytest.approx(float(np.dot(parts, weights)))
        counts = [one.metrics["samples/news"] for one in both.values()]
        losses = [one.metrics["loss/news"] for one in both.values()]
        assert trained.metrics["samples/news"] == sum(counts)
        assert trained.metrics["loss/news"] == pytest.approx(float(np.dot(losses, counts)) / sum(counts))
        assert trained.metrics["nodes"] == 2 and trained.metrics["valid_tokens"] == 8 * 15
    assert left_behind(before) == set()


def test_one_update_leaves_and_each_node_keeps_a_state(tmp_path: Path) -> None:
    federation = make_site(tmp_path, steps=8, optimizer_state="average")
    _, results = rounds(federation, tmp_path)
    assert results[1].notes == [] and "state_lost" not in results[1].metrics
    seen = [number for trained in results for number in samples(trained)]
    first = samples(results[0])
    assert len(first) == len(set(first)), "within an epoch no sample is trained twice, on whichever node"
    view = view_of(federation, "alpha")
    assert len(locate(view, first)) == len(first)
    for node in (1, 2):
        folder = view.node(node).state_dir / "state" / "000002-0001"
        state = torch.load(folder / "training.pt", weights_only=True)
        assert state["optimizer"] and state["stream"]["epoch"] >= 1
    whole = torch.load(Path(results[1].folder, "training.pt"), weights_only=True)
    assert whole["nodes"] == 2 and whole["samples"] == len(seen) and whole["optimizer"] is None
    assert results[1].moments and results[1].files


def test_key_layers_are_the_nodes_mean_and_their_moments_stay_at_the_nodes(tmp_path: Path) -> None:
    plain = make_site(tmp_path / "plain", steps=2, optimizer_state="average")
    whole = train(make_job(plain, theta_zero(plain), tmp_path / "plain"), silent)
    federation = make_site(tmp_path / "key", steps=2, optimizer_state="average")
    federation = federation.model_copy(update={"worldlm": WorldLM(key_layers=1)})
    theta, key = theta_zero(federation), set(key_layers(federation)["blocks.1"])
    trained = train(make_job(federation, theta, tmp_path / "key"), silent)
    expected = apply(theta, whole)
    layers = {n: v for e in trained.key_layers for n, v in load_file(Path(trained.folder, e.path)).items()}
    backbone = apply({name: value for name, value in theta.items() if name not in key}, trained)
    assert layers.keys() == key and backbone.keys() == theta.keys() - key
    for name, value in {**layers, **backbone}.items():
        assert np.array_equal(value, expected[name]), name
    moments = all_tensors(trained.moments)
    assert moments and not {name.partition(".")[2] for name in moments} & key
    files = [str(Path(trained.folder, entry.path)) for entry in trained.moments]
    second = train(make_job(federation, theta, tmp_path / "key", 2, moment_files=files), silent)
    for node in (1, 2):
        folder = view_of(federation, "alpha").node(node).state_dir / "state" / "000002-0001"
        state = torch.load(folder / "training.pt", weights_only=True)["optimizer"]
        assert {int(own["step"]) for own in state.values()} == {4}
    assert second.notes == []


def test_another_number_of_nodes_starts_afresh_and_says_so(tmp_path: Path) -> None:
    federation = make_site(tmp_path, steps=2)
    thetas, _ = rounds(federation, tmp_path, 1)
    one = with_hardware(federation, None)
    job = make_job(one, thetas[1], tmp_path, 2)
    second = train(job, silent)
    assert second.metrics["state_lost"] == 1.0
    assert "another number of independent nodes (2, now 1)" in said(job, second)[0]
    job = make_job(federation, thetas[1], tmp_path, 3)
    back = train(job, silent)
    assert back.metrics["state_lost"] == 1.0
    first, second, *_ = said(job, back)
    assert "(1, now 2)" in first and second.startswith("node 1: site 'alpha': the private state")


def test_a_nodes_failure_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_site(tmp_path, steps=2)
    theta = theta_zero(federation)
    job = make_job(federation, theta, tmp_path)

    def kill(job: LocalJob, gpus: list[int], report: Any, train: Any) -> Trained:
        if "nodes/2" in str(job.view.state_dir):
            os.kill(os.getpid(), signal.SIGKILL)
        return train_node(job, gpus, report, train)

    with monkeypatch.context() as patch:
        patch.setattr(nodes_module, "train_node", kill)
        with pytest.raises(ChildFailed, match="node 2 of site 'alpha': killed by SIGKILL"):
            train(job, silent)
    assert train(job, silent).steps == 2, "the job resumes when it is repeated"
    theta["norm_f.bias"][:] = np.nan
    with pytest.raises(UpdateRejected, match=r"'alpha' rejected: node \d of site 'alpha': training diverged"):
        train(make_job(federation, theta, tmp_path, attempt=2), silent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can")
def test_more_gpus_than_the_machine_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from photon_core.hardware import device

    federation = with_hardware(make_federation(tmp_path), APART.model_copy(update={"devices": 4}))
    monkeypatch.setattr(device, "choose_device", lambda _: "cuda")
    job = LocalJob(view_of(federation, "alpha"), 1, 1, [], "0", 0)
    with pytest.raises(FederationError, match=r"takes 8 GPUs of one machine.* shows 0.*its own site"):
        device.check_devices(job.view, 8)
