"""The model sent as bfloat16: what is written, and that the rounding never enters the store's own model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.round import aggregate_round
from photon_core.evidence.events import Kind, Log
from photon_core.model.init import initial_tensor
from photon_core.model.shapes import parameter_shapes
from photon_core.run.run import Run
from photon_core.store.store import Store
from photon_core.tensors.numerics import from_bfloat16, to_bfloat16
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.training.exchange import Theta
from photon_core.update.codecs import lossless
from schemas.federation import Federation
from schemas.manifests import FileEntry, TensorEntry, UpdateManifest
from schemas.sections.aggregation import Aggregation

Arrays = dict[str, np.ndarray]
MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
FEDERATION = Federation.model_validate(
    {
        "run": "run", "recipe": None, "store": "unused", "tokenizer": "bytes",
        "model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": 257, "max_seq_len": 16},
        "rounds": {"count": 3}, "local": {"steps": 5, "batch_size": 4, "device": "cpu"},
        "update": {"model_dtype": "bfloat16"},
        "sites": [{"name": s, "streams": [{"name": "s", "source": "x.txt"}]} for s in "ab"],
    }
)  # fmt: skip


def load(run: Run, t: int, files: list[FileEntry]) -> Arrays:
    with TensorReader(run.store, run.round_dir(t), files) as reader:
        return {n: next(reader.chunks(n, 1 << 20)).copy().reshape(x.shape) for n, x in reader.tensors.items()}


def rounded(theta: Arrays) -> Arrays:
    return {n: from_bfloat16(to_bfloat16(a), np.empty_like(a)) for n, a in theta.items()}


def moved(theta: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: np.float32(a + 1e-3 * rng.standard_normal(a.shape)) for n, a in theta.items()}


def send(run: Run, t: int, site: str, start: Arrays, end: Arrays, **more: Any) -> None:
    base = run.round(t - 1)
    assert base is not None
    tensors = {n: TensorEntry(dtype="I32", shape=a.shape) for n, a in start.items()}
    with ShardWriter(run.store, run.site_dir(t, site, 1), "", shard_plan(tensors)) as writer:
        for name in writer.order:
            writer.write(name, lossless.encode(start[name], end[name]).reshape(-1))
        files = writer.close()
    run.commit_update(
        UpdateManifest(
            run="run", round=t, site=site, attempt=1, base_sha256=base.model_sha256, codec="float32", files=files,
            tokens=320, steps=5, metrics={"train_loss": 1.0}, data_sha256="", versions={},
            previous_sha256=run.round_sha256(t - 1), **more,
        )
    )  # fmt: skip


@pytest.fixture
def second(tmp_path: Path, make_run: MakeRun) -> Run:
    """A run whose round 1 is committed and sent as bfloat16; the sites of round 1 had float32."""
    shapes = parameter_shapes(FEDERATION.model)
    theta = {name: initial_tensor(name, FEDERATION.model, 17) for name in shapes}
    sites = {site: (moved(theta, seed), 64) for seed, site in enumerate("ab")}
    run, _ = make_run(Store(str(tmp_path)), theta, sites)
    commit(run, FEDERATION, aggregate_round(run, FEDERATION, 1, ["a", "b"], {}), RoundLog(["a", "b"]))
    return run


def aggregated(run: Run) -> Candidate:
    return aggregate_round(run, FEDERATION, 2, ["a", "b"], {})


def test_what_is_sent_is_half_as_long_and_rounded(second: Run, tmp_path: Path) -> None:
    manifest = second.round(1)
    assert manifest is not None
    theta = load(second, 1, manifest.model)
    assert sum(e.bytes for e in manifest.download) < 0.6 * sum(e.bytes for e in manifest.model)
    files = [tmp_path / second.round_dir(1) / entry.path for entry in manifest.download]
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert all(torch.equal(found[n], torch.from_numpy(a).to(torch.bfloat16)) for n, a in theta.items())
    site = Theta([str(file) for file in files], FEDERATION.model)
    assert all(np.array_equal(site.array(n), a) for n, a in rounded(theta).items())


def test_changes_from_the_rounded_model_are_applied_to_the_models_own_bits(second: Run) -> None:
    manifest = second.round(1)
    assert manifest is not None
    theta = load(second, 1, manifest.model)
    start = rounded(theta)
    for site in "ab":  # nothing was learned: nothing may change, though the sites' parameters are not theta
        send(second, 2, site, start, start, base_dtype="BF16")
    candidate = aggregated(second)
    assert candidate.left_out == {}
    assert candidate.result.norms["pseudo_gradient_norm"] == 0
    found = load(second, 2, candidate.result.model)
    assert all(found[n].tobytes() == a.tobytes() for n, a in theta.items())


def test_theta_k_counts_as_far_from_theta_as_from_the_rounded_model(second: Run) -> None:
    manifest = second.round(1)
    assert manifest is not None
    theta = load(second, 1, manifest.model)
    start = rounded(theta)
    ends = {site: moved(start, seed) for seed, site in enumerate("ab", 5)}
    for site, end in ends.items():
        send(second, 2, site, start, end, base_dtype="BF16")
    found = load(second, 2, aggregated(second).result.model)
    for n, a in theta.items():
        change = sum(end[n].astype(np.float64) - start[n] for end in ends.values()) / 2
        assert np.allclose(found[n], a + change, rtol=0, atol=2e-7)


def test_an_update_from_the_other_model_is_refused(second: Run) -> None:
    manifest = second.round(1)
    assert manifest is not None
    theta = load(second, 1, manifest.model)
    send(second, 2, "a", rounded(theta), moved(theta, 3), base_dtype="BF16")
    send(second, 2, "b", theta, moved(theta, 4))
    lenient = FEDERATION.model_copy(update={"rounds": FEDERATION.rounds.model_copy(update={"quorum": 1})})
    candidate = aggregate_round(second, lenient, 2, ["a", "b"], {})
    assert "starts from a model in F32" in candidate.left_out["b"]
    log = Log("run")
    log.at(2, "b").append(Kind.FLOW_RUN_RESTARTED)
    round_log = RoundLog(["a", "b"], events=log)
    assert commit(second, lenient, candidate, round_log).incidents == {"b": ["it was started again"]}


def test_means_of_regions_are_of_the_models_own_bits(second: Run) -> None:
    """What the sites start from is rounded; what their regions send on is not."""
    manifest = second.round(1)
    assert manifest is not None
    theta = load(second, 1, manifest.model)
    start = rounded(theta)
    for seed, site in enumerate("ab", 5):
        send(second, 2, site, start, moved(start, seed), base_dtype="BF16")
    flat = load(second, 2, aggregated(second).result.model)
    tree = FEDERATION.model_copy(update={"aggregation": Aggregation(tree_above=1)})
    candidate = aggregate_round(second, tree, 2, ["a", "b"], {})
    assert candidate.groups
    found = load(second, 2, candidate.result.model)
    assert all(np.allclose(found[n], flat[n], rtol=0, atol=1e-7) for n in flat)


def test_its_files_are_of_the_size_that_the_file_asks_for(tmp_path: Path, make_run: MakeRun) -> None:
    theta = {"a": np.linspace(-1, 1, 4000, dtype=np.float32).reshape(40, 100), "b": np.ones(7, np.float32)}
    run, _ = make_run(Store(str(tmp_path)), theta, {})
    base = run.round(0)
    assert base is not None
    files = write_rounded(run, 0, base.model, 2000)
    assert len(files) > 4 and all(entry.bytes < 2000 + 1000 for entry in files)
    with TensorReader(run.store, run.round_dir(0), files) as reader:
        for name, values in theta.items():
            assert (
                np.concatenate(list(map(np.copy, reader.chunks(name, 100)))) == to_bfloat16(values.ravel())
            ).all()
        reader.verify()
