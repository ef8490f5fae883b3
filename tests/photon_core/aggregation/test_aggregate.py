"""The pass from updates to the next model: against plain NumPy, exact cases, and what it refuses, by name."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.aggregate import Aggregate, aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.server_optimizer import OPTIMIZERS, server_at
from photon_core.errors import CorruptFile, PhotonError, UpdateRejected
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from photon_core.update.codecs.registry import Lossless, Lossy, get_codec
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.sections.server import WITH_MOMENTUM, Server, ServerSchedule

Arrays = dict[str, np.ndarray]
MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
SHAPES = {"b.weight": (13, 7), "a.bias": (5,), "scale": (), "none": (0, 3), "z": (1, 50)}


def arrays(seed: int, spread: float = 1.0, around: Arrays | None = None) -> Arrays:
    rng = np.random.default_rng(seed)
    noise = {n: np.asarray(spread * rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}
    return {n: np.asarray(noise[n] + around[n], np.float32) for n in SHAPES} if around else noise


def load(run: Run, t: int, files: list[FileEntry]) -> Arrays:
    with TensorReader(run.store, run.round_dir(t), files) as reader:
        return {
            name: np.concatenate([np.empty(0, np.float32), *(c.copy() for c in reader.chunks(name, 11))]).reshape(
                tensor.shape
            )
            for name, tensor in reader.tensors.items()
        }


def commit(run: Run, t: int, result: Aggregate) -> None:
    run.commit_round(
        RoundManifest(
            run="run",
            round=t,
            model=result.model,
            model_sha256=model_sha256(result.model),
            optimizer=result.optimizer,
            federation_sha256="",
            previous_sha256=run.round_sha256(t - 1),
            created="",
            versions={},
        )
    )


@pytest.fixture
def theta() -> Arrays:
    return arrays(0)


@pytest.fixture
def sites(theta: Arrays) -> dict[str, tuple[Arrays, int]]:
    return {f"site{k}": (arrays(k + 1, 0.1, theta), 100 * (k + 1)) for k in range(4)}


def test_the_weighted_mean_of_the_sites(store: Store, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(store, theta, sites)
    result = aggregate(run, 1, updates, Server())
    assert result.weights == {"site0": 0.1, "site1": 0.2, "site2": 0.3, "site3": 0.4}
    assert result.optimizer == []
    found = load(run, 1, result.model)
    for name in SHAPES:
        expected = sum(w * sites[s][0][name].astype(np.float64) for s, w in result.weights.items())
        assert np.allclose(found[name], expected, rtol=0, atol=1e-6)
        assert found[name].shape == SHAPES[name]
    assert run.round(1) is None


def test_norms(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    result = aggregate(run, 1, updates, Server(lr=0.3))

    def flat(of: Arrays) -> np.ndarray:
        return np.concatenate([of[name].reshape(-1) for name in SHAPES]).astype(np.float64)

    deltas = {site: flat(theta) - flat(theta_k) for site, (theta_k, _) in sites.items()}
    g = sum(result.weights[site] * delta for site, delta in deltas.items())
    expected = {
        "pseudo_gradient_norm": np.linalg.norm(g),
        "model_norm": np.linalg.norm(flat(theta) - 0.3 * g),
        "step_norm": 0.3 * np.linalg.norm(g),
        **{f"delta_norm/{site}": np.linalg.norm(delta) for site, delta in deltas.items()},
        **{
            f"cosine/{site}": delta @ g / np.linalg.norm(delta) / np.linalg.norm(g)
            for site, delta in deltas.items()
        },
        **{
            f"cosine_pair/{one}/{other}": deltas[one]
            @ deltas[other]
            / np.linalg.norm(deltas[one])
            / np.linalg.norm(deltas[other])
            for one, other in combinations(sorted(deltas), 2)
        },
    }
    assert result.norms == pytest.approx(expected, rel=1e-5)


def test_one_site_or_agreeing_sites_with_lr_1_are_copied_bit_for_bit(tmp_path: Path, make_run: MakeRun) -> None:
    theta, theta_k = arrays(0), arrays(1)  # far apart: a float32 difference would lose bits
    theta_k["a.bias"][:2] = [-0.0, 1e-30]
    hashes = set()
    for name, count in (("one", 1), ("four", 4)):
        sites = {f"site{k}": (theta_k, 10 + 3 * k) for k in range(count)}
        run, updates = make_run(Store(str(tmp_path / name)), theta, sites)
        result = aggregate(run, 1, updates, Server())
        found = load(run, 1, result.model)
        assert all(found[n].tobytes() == theta_k[n].tobytes() for n in SHAPES)
        hashes.add(model_sha256(result.model))
    assert len(hashes) == 1


@pytest.mark.parametrize("optimizer", ["fedavg", "nesterov"])
def test_no_bit_depends_on_pieces_threads_or_order(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, optimizer: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    server = Server(optimizer=optimizer, lr=0.7, momentum=0.9 if optimizer == "nesterov" else 0)
    backwards = dict(reversed(updates.items()))
    found = [
        aggregate(run, 1, chosen, server, limits=Limits(piece=elements, threads=threads))
        for chosen, elements, threads in [(updates, 1, 0), (updates, 10, 3), (backwards, 1 << 20, 1)]
    ]
    assert len({model_sha256(result.model) for result in found}) == 1
    assert len({model_sha256(result.optimizer) for result in found}) == 1


def test_the_updates_shards_may_be_cut_otherwise(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    found = []
    for size in (1, 100, 1 << 20):
        run, updates = make_run(Store(str(tmp_path / str(size))), theta, sites, size)
        found.append(aggregate(run, 1, updates, Server(), limits=Limits(shard_bytes=200)))
    assert len({model_sha256(result.model) for result in found}) == 1
    assert [{name: part.rows for name, part in entry.tensors.items()} for entry in found[0].model] == [
        {"a.bias": None},
        {"b.weight": (0, 7)},
        {"b.weight": (7, 13), "none": None, "scale": None},
        {"z": None},
    ]


def test_momentum_is_kept_between_rounds(tmp_path: Path, make_run: MakeRun) -> None:
    theta = arrays(0)
    server = Server(optimizer="fedmom", lr=0.2, momentum=0.9)
    run, updates = make_run(Store(str(tmp_path)), theta, {"a": (arrays(1, 0.1, theta), 1)}, 200)
    first = aggregate(run, 1, updates, server, limits=Limits(shard_bytes=150))
    commit(run, 1, first)
    momentum = load(run, 1, first.optimizer)
    g = {n: theta[n] - arrays(1, 0.1, theta)[n] for n in SHAPES}
    assert set(momentum) == {f"momentum.{n}" for n in SHAPES}
    assert all(np.array_equal(momentum[f"momentum.{n}"], g[n]) for n in SHAPES)

    theta_1 = load(run, 1, first.model)
    update = _update(run, 2, "a", theta_1, arrays(2, 0.1, theta_1))
    second = aggregate(run, 2, {"a": update}, server)
    g_2 = {n: theta_1[n] - arrays(2, 0.1, theta_1)[n] for n in SHAPES}
    for name, found in load(run, 2, second.model).items():
        m = 0.9 * g[name].astype(np.float64) + g_2[name]
        assert np.allclose(found, theta_1[name] - 0.2 * (g_2[name] + 0.9 * m), rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resume_between_any_two_rounds_changes_no_bit(tmp_path: Path, make_run: MakeRun, optimizer: Any) -> None:
    """Every round in a process that knows nothing but the store, against the steps in memory."""
    schedule, momentum = ServerSchedule(name="cosine", warmup_rounds=2), 0.9 * (optimizer in WITH_MOMENTUM)
    server = Server(optimizer=optimizer, lr=0.3, momentum=momentum, schedule=schedule)
    theta = arrays(0)
    kept = {n: [np.full_like(theta[n], f(server)) for f in OPTIMIZERS[optimizer].state.values()] for n in SHAPES}
    run, updates = make_run(Store(str(tmp_path)), theta, {"a": (arrays(1, 0.1, theta), 1)})
    update = updates["a"]
    for t in range(1, 6):
        now, theta_k = server_at(t, server, 5), arrays(t, 0.1, theta)
        expected = {}
        for name in SHAPES:
            old, mean, out = theta[name].reshape(-1), theta_k[name].reshape(-1), np.empty(theta[name].size, "f4")
            state = [values.reshape(-1) for values in kept[name]]
            expected[name] = OPTIMIZERS[optimizer].step(old, mean, old - mean, state, now, out)
        commit(run, t, aggregate(run, t, {"a": update}, now))
        run = Run(Store(str(tmp_path)), "run")
        manifest = run.round(t)
        assert manifest is not None
        theta = load(run, t, manifest.model)
        assert all(theta[name].tobytes() == expected[name].tobytes() for name in SHAPES)
        update = _update(run, t + 1, "a", theta, arrays(t + 1, 0.1, theta))


@pytest.mark.parametrize("codec", ["bfloat16", "float16", "int8:16", "int4:32", "int3:16", "topk:16:4"])
def test_sites_may_each_send_in_a_codec_of_their_own(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, codec: str
) -> None:
    """The lossy one's parameters are those that its codec decodes; pieces and threads change no bit."""
    run, updates = make_run(Store(str(tmp_path)), theta, {"site0": sites["site0"]})
    updates["site1"] = _update(run, 1, "site1", theta, sites["site1"][0], codec)
    lossy = get_codec(codec)
    assert isinstance(lossy, Lossy)
    decoded = {
        n: lossy.decode(theta[n], lossy.encode(np.asarray(sites["site1"][0][n] - theta[n], np.float32)))
        for n in SHAPES
    }
    found = [
        aggregate(run, 1, updates, Server(), limits=Limits(piece=elements, threads=threads))
        for elements, threads in [(1, 0), (40, 3), (1 << 20, 1)]
    ]
    assert len({model_sha256(result.model) for result in found}) == 1
    weights = found[0].weights
    for name, mean in load(run, 1, found[0].model).items():
        expected = weights["site0"] * sites["site0"][0][name].astype(np.float64)
        assert np.allclose(mean, expected + weights["site1"] * decoded[name], rtol=0, atol=1e-6)


def _update(
    run: Run, t: int, site: str, theta: Arrays, theta_k: Arrays, codec_name: str = "float32"
) -> UpdateManifest:
    from photon_core.tensors.shards import shard_plan
    from photon_core.tensors.writer import ShardWriter

    base = run.round(t - 1)
    assert base is not None
    codec = get_codec(codec_name)
    tensors = {n: TensorEntry(dtype=codec.dtype, shape=codec.shape(a.shape)) for n, a in theta.items()}
    with ShardWriter(run.store, run.site_dir(t, site, 1), "", shard_plan(tensors)) as writer:
        for name in writer.order:
            if theta[name].size and isinstance(codec, Lossless):
                writer.write(name, codec.encode(theta[name], theta_k[name]).reshape(-1))
            elif theta[name].size and isinstance(codec, Lossy):
                writer.write(name, codec.encode(np.asarray(theta_k[name] - theta[name], np.float32)).reshape(-1))
        files = writer.close()
    return UpdateManifest(
        run="run",
        round=t,
        site=site,
        attempt=1,
        base_sha256=base.model_sha256,
        codec=codec_name,
        files=files,
        tokens=1,
        steps=1,
        metrics={"train_loss": 1.0},
        data_sha256="",
        versions={},
        previous_sha256=run.round_sha256(t - 1),
    )


def _tensor(update: UpdateManifest, name: str, **changes: Any) -> dict[str, Any]:
    entry = update.files[0]
    tensors = {**entry.tensors, name: entry.tensors[name].model_copy(update=changes)}
    return _file(update, {"tensors": tensors})


def _file(update: UpdateManifest, changes: dict[str, Any]) -> dict[str, Any]:
    return {"files": [update.files[0].model_copy(update=changes)]}


BAD: dict[str, tuple[Callable[[UpdateManifest], dict[str, Any]], str]] = {
    "base": (lambda _: {"base_sha256": "e" * 64}, "starts from model eeeeeeeeeeeeeeee, but round 0's model is"),
    "previous": (
        lambda _: {"previous_sha256": "e" * 64},
        "follows a manifest of round 0 that is not the committed one",
    ),
    "run": (lambda _: {"run": "other"}, "an update of run 'other'"),
    "round": (lambda _: {"round": 2}, "round 2, site 'site1', not of round 1"),
    "site": (lambda _: {"site": "site0"}, "site 'site0', not of round 1"),
    "no tokens": (lambda _: {"tokens": 0}, "claims 0 trained tokens"),
    "negative tokens": (lambda _: {"tokens": -5}, "claims -5 trained tokens"),
    "endless tokens": (lambda _: {"tokens": 10**18}, "claims 1000000000000000000 trained tokens"),
    "codec": (lambda _: {"codec": "zip"}, "codec 'zip' is not known"),
    "no files": (lambda _: {"files": []}, "has no tensor 'a.bias' (5 missing)"),
    "files twice": (lambda u: {"files": u.files * 2}, "is in two files"),
    "shape": (lambda u: _tensor(u, "z", shape=(50, 1)), "'z' has shape [50, 1], the model's is [1, 50]"),
    "dtype": (lambda u: _tensor(u, "z", dtype="F32"), "'z' is F32; its codec writes I32"),
    "path": (
        lambda u: _file(u, {"path": "../../x"}),
        "not a path inside the store",
    ),
    "hash": (lambda u: _file(u, {"blake3": "0" * 64}), "does not have the blake3"),
    "hash of an older manifest": (
        lambda u: _file(u, {"sha256": "0" * 64, "blake3": ""}),
        "does not have the sha256",
    ),
    "no hash": (lambda u: _file(u, {"sha256": "../../x"}), "has no sha256 or blake3"),
    "size": (lambda u: _file(u, {"bytes": 10**15}), "but its tensors have"),
    "missing": (lambda u: _file(u, {"path": "gone"}), "gone is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_update_is_rejected_by_name(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, case: str
) -> None:
    change, message = BAD[case]
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    updates["site1"] = updates["site1"].model_copy(update=change(updates["site1"]))
    with pytest.raises(UpdateRejected) as rejected:
        aggregate(run, 1, updates, Server(optimizer="nesterov", momentum=0.9))
    assert rejected.value.site == "site1"
    assert message in rejected.value.reason
    assert run.store.ls(f"{run.round_dir(1)}/model") == []
    del updates["site1"]
    assert set(aggregate(run, 1, updates, Server()).weights) == {"site0", "site2", "site3"}


def test_a_false_sha256_beside_a_right_blake3_changes_nothing(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    right = aggregate(run, 1, updates, Server())
    updates["site1"] = updates["site1"].model_copy(update=_file(updates["site1"], {"sha256": "0" * 64}))
    assert model_sha256(aggregate(run, 1, updates, Server()).model) == model_sha256(right.model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.bias", "scale", "z"])
def test_values_that_are_not_finite_are_rejected_by_name(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, value: float, name: str
) -> None:
    sites["site2"][0][name].reshape(-1)[-1] = value
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    with pytest.raises(UpdateRejected, match=f"'site2' rejected: tensor '{name}' holds NaN or Inf"):
        aggregate(run, 1, updates, Server())


def test_finite_values_whose_mean_is_not_are_rejected(tmp_path: Path, make_run: MakeRun) -> None:
    theta = {"w": np.zeros(2, np.float32)}
    sites = {
        "a": ({"w": np.float32([1, 1])}, 1),
        "b": ({"w": np.float32([3e38, 1])}, 1),
        "c": ({"w": np.float32([-3.4e38, 1])}, 1),
    }
    run, updates = make_run(Store(str(tmp_path)), theta, {"a": sites["a"], "b": sites["b"]})
    assert aggregate(run, 1, updates, Server()).norms["delta_norm/b"] == pytest.approx(3e38)
    run, updates = make_run(Store(str(tmp_path / "2")), theta, {"b": sites["b"], "c": sites["c"]})
    with pytest.raises(UpdateRejected, match="so large that the mean is not finite") as rejected:
        aggregate(run, 1, updates, Server())
    assert rejected.value.site == "c"


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_shard_is_rejected_by_name(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, damage: str
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    path = tmp_path / run.site_dir(1, "site3", 1) / updates["site3"].files[0].path
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-20])
    with pytest.raises(UpdateRejected) as rejected:
        aggregate(run, 1, updates, Server())
    assert rejected.value.site == "site3"
    assert run.store.ls(f"{run.round_dir(1)}/model") == []


def test_a_damaged_base_is_nobodys_fault(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    base = run.round(0)
    assert base is not None
    path = tmp_path / run.round_dir(0) / base.model[0].path
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=path.name):
        aggregate(run, 1, updates, Server())


def test_nothing_to_aggregate(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    with pytest.raises(PhotonError, match="there are no updates"):
        aggregate(run, 1, {}, Server())
    with pytest.raises(PhotonError, match="round 1 is not committed"):
        aggregate(run, 2, updates, Server())


def test_a_step_that_overflows_is_no_sites_fault(tmp_path: Path, make_run: MakeRun) -> None:
    run, updates = make_run(Store(str(tmp_path)), {"w": np.float32([1])}, {"a": ({"w": np.float32([-2e38])}, 1)})
    with pytest.raises(PhotonError, match=r"lower server\.lr") as error:
        aggregate(run, 1, updates, Server(lr=50))
    assert not isinstance(error.value, UpdateRejected)
