"""A federation that blows up without the guard and recovers with it, on the store's real path but for training.

Three sites, each with another quadratic: theta_k = theta - a (theta - target_k); the loss is the distance
to the targets' mean. A server learning rate beyond 2 / a diverges.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.claims import largest_loss
from photon_core.aggregation.commit import commit
from photon_core.aggregation.guard import blown_up, jumps, loss_trouble, norm_trouble, running, sentences
from photon_core.aggregation.round import aggregate_round, apply_again
from photon_core.errors import ModelDiverged, StepOverflow
from photon_core.evidence.events import Kind, Log
from photon_core.evidence.metrics import LARGEST_LOSS
from photon_core.model.shapes import moment_shapes
from photon_core.run.opening import put_files
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs import lossless
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.sections.server import Guard

SITES = ("a", "b", "c")
SIZE = 64
A = 0.9
TARGETS = {s: np.random.default_rng(k).standard_normal(SIZE).astype(np.float32) for k, s in enumerate(SITES)}
GOAL = np.mean(list(TARGETS.values()), axis=0)


def federation(optimizer_state: str = "keep", **server: Any) -> Federation:
    return Federation.model_validate(
        {
            "run": "run", "recipe": None, "store": "unused", "tokenizer": "bytes",
            "model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": 257, "max_seq_len": 16},
            "rounds": {"count": 12, "quorum": 2}, "server": server,
            "local": {"steps": 5, "batch_size": 4, "device": "cpu", "optimizer_state": optimizer_state},
            "sites": [{"name": s, "streams": [{"name": "s", "source": "x.txt"}]} for s in SITES],
        }
    )  # fmt: skip


def write(run: Run, folder: str, stem: str, values: np.ndarray, dtype: str) -> list[FileEntry]:
    plan = shard_plan({"w": TensorEntry(dtype=dtype, shape=(SIZE,))})
    with ShardWriter(run.store, folder, stem, plan) as writer:
        writer.write("w", values)
        return writer.close()


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


def start(place: Path | str, **metrics: float) -> Run:
    run = Run(Store(str(place)), "run")
    files = write(run, run.round_dir(0), "model/", 5 * np.ones(SIZE, np.float32), "F32")
    run.commit_round(
        RoundManifest(
            run="run", round=0, model_sha256=model_sha256(files), model=files, metrics=metrics,
            federation_sha256="", created="", versions={},
        )
    )  # fmt: skip
    return run


def model(run: Run, t: int, files: list[FileEntry]) -> np.ndarray:
    with TensorReader(run.store, run.files_dir(t), files) as reader:
        return next(reader.chunks("w", SIZE)).copy()


def train(
    run: Run,
    t: int,
    site: str,
    change: Callable[[np.ndarray], np.ndarray],
    moments: list[Path] | None = None,
    steps: int = 5,
    **metrics: float,
) -> None:
    base = run.round(t - 1)
    assert base is not None
    theta = model(run, t - 1, base.model)
    theta_k = (theta + change(-A * (theta - TARGETS[site]))).astype(np.float32)
    files = write(run, run.site_dir(t, site, 1), "", lossless.encode(theta, theta_k), "I32")
    run.commit_update(
        UpdateManifest(
            run="run", round=t, site=site, attempt=1, base_sha256=base.model_sha256, codec="float32", files=files,
            tokens=64 * steps, steps=steps, metrics={"train_loss": 1.0, **metrics}, data_sha256="", versions={},
            previous_sha256=run.round_sha256(t - 1),
            moments=put_files(run, run.site_dir(t, site, 1), moments or []),
        )
    )  # fmt: skip


def evaluate(run: Run, candidate: Candidate) -> dict[str, dict[str, float]]:
    away = model(run, candidate.t, candidate.result.model).astype(np.float64) - GOAL
    return told(float(np.sqrt((away**2).mean())))


def told(loss: float) -> dict[str, dict[str, float]]:
    return {site: {"loss": min(loss, LARGEST_LOSS), "perplexity": 1.0, "tokens": 1.0} for site in SITES}


def make_round(
    run: Run,
    setting: Federation,
    t: int,
    change: Callable[[np.ndarray], np.ndarray] = lambda c: c,
    log: Log | None = None,
    **told: float,
) -> RoundManifest:
    """As flows/federated_round.py does."""
    for site in SITES:
        train(run, t, site, change, **told)
    return aggregate_and_commit(run, setting, t, log)


def aggregate_and_commit(run: Run, setting: Federation, t: int, log: Log | None = None) -> RoundManifest:
    candidate = aggregate_round(run, setting, t, list(SITES), {})
    evaluations = evaluate(run, candidate)
    while again := apply_again(run, setting, candidate, evaluations):
        candidate = again
        evaluations = evaluate(run, candidate)
    return commit(run, setting, candidate, RoundLog(list(SITES), evaluations, events=log or Log("run")))


def test_a_federation_blows_up_without_the_guard_and_recovers_with_it() -> None:
    without, guarded = start(memory()), start(memory())
    reckless = {"lr": 3.0}  # theta - goal is multiplied by 1 - 2.7 in every round
    for t in range(1, 9):
        blown = make_round(without, federation(**reckless, guard={"tries": 0}), t)
        saved = make_round(guarded, federation(**reckless), t)
    assert blown.metrics["loss"] == largest_loss(federation())
    assert blown.guard == [] and blown.lowered == 0
    assert saved.metrics["loss"] < 6
    manifests = [manifest for t in range(1, 9) if (manifest := guarded.round(t))]
    acted = [manifest for manifest in manifests if manifest.guard]
    assert acted
    for manifest in acted:
        lr = 3.0 * 0.5**manifest.lowered
        assert manifest.server["lr"] == lr
        assert f"aggregation is retried with server.lr {lr:g} (was " in manifest.guard[-1]
        assert "the validation loss is" in manifest.guard[0]
    assert all(manifest.server["lr"] == 3.0 for manifest in manifests if not manifest.guard)


def test_a_step_out_of_line_is_made_smaller_from_the_same_updates(tmp_path: Path) -> None:
    run, setting = start(tmp_path), federation(lr=0.2, optimizer="nesterov", momentum=0.5)
    for t in (1, 2, 3):
        assert make_round(run, setting, t).guard == []
    before = run.round(3)
    assert before is not None
    theta = model(run, 3, before.model)
    manifest = make_round(run, setting, 4, lambda c: 40 * c)
    assert len(manifest.guard) >= 1
    assert "the server's step is" in manifest.guard[0]
    lr = manifest.server["lr"]
    assert lr == 0.2 * 0.5 ** len(manifest.guard)
    m, g = _momentum(run, 3), -40 * np.mean([-A * (theta - TARGETS[s]) for s in SITES], axis=0)
    expected = theta - lr * (g + 0.5 * (0.5 * m + g))
    assert np.allclose(model(run, 4, manifest.model), expected, rtol=0, atol=2e-4)
    assert np.allclose(_momentum(run, 4), lr / 0.2 * (0.5 * m + g), rtol=0, atol=2e-4), "lowered, too"


def test_with_momentum_a_federation_recovers_from_a_blow_up() -> None:
    """One round's updates are 60 times too long: what the guard takes of them does not come back by the momentum.

    Against the same in float64; every round in a process that knows nothing but the store.
    """
    run, setting = start(memory()), federation(lr=0.7, optimizer="nesterov", momentum=0.9)
    theta, m, found = 5 * np.ones(SIZE), np.zeros(SIZE), []
    for t in range(1, 11):
        length = 60.0 if t == 5 else 1.0
        found.append(make_round(Run(run.store, "run"), setting, t, lambda c, by=length: by * c))
        lr, g = found[-1].server["lr"], length * A * (theta - GOAL)
        m = 0.9 * m + g
        theta = theta - lr * (g + 0.9 * m)
        m *= lr / 0.7
        assert np.allclose(model(run, t, found[-1].model), theta, rtol=0, atol=1e-4)
    losses = [manifest.metrics["loss"] for manifest in found]
    assert len(found[4].guard) == 3 and losses[4] > 1
    assert all(manifest.guard == [] for manifest in found[5:]) and max(losses[5:]) < 0.5


def test_the_first_round_is_held_against_the_model_that_it_starts_from() -> None:
    far = {"guard": {"loss_jump": None, "lr_factor": 0.1}, "lr": 20}
    blown = make_round(start(memory()), federation(**far), 1)
    assert (blown.guard, blown.server["lr"]) == ([], 20.0), "a run from before norms were recorded"
    saved = make_round(start(memory(), model_norm=40.0), federation(**far), 1)
    (note,) = saved.guard
    assert "the model's norm is" in note and "running value 40: aggregation is retried with server.lr 2 " in note

    loss = {"guard": {"norm_factor": None}, "lr": 3.0}
    blown = make_round(start(memory()), federation(**loss), 1)
    assert (blown.guard, blown.server["lr"]) == ([], 3.0), "updates that do not report it"
    saved = make_round(start(memory()), federation(**loss), 1, first_loss=5.0)
    (note,) = saved.guard
    assert "by the median of 3 sites, over 1: aggregation is retried with server.lr 1.5 (was 3)" in note
    assert saved.metrics["loss"] < 5 < blown.metrics["loss"]


def _momentum(run: Run, t: int) -> np.ndarray:
    manifest = run.round(t)
    assert manifest is not None
    with TensorReader(run.store, run.round_dir(t), manifest.optimizer) as reader:
        return next(reader.chunks("momentum.w", SIZE)).copy()


def test_a_step_that_is_not_finite_is_made_smaller(tmp_path: Path) -> None:
    setting = {"lr": 8.0}
    with pytest.raises(StepOverflow):
        make_round(start(tmp_path / "a"), federation(**setting, guard={"tries": 0}), 1, lambda c: 0 * c + 1e38)
    found = aggregate_round(Run(Store(str(tmp_path / "a")), "run"), federation(**setting), 1, list(SITES), {})
    assert found.server.lr == 2.0
    notes = sentences(found.guard)
    assert len(notes) == 2 and all("NaN or infinite" in note for note in notes)


def test_when_the_tries_are_used_up_the_last_one_stands_and_says_so(tmp_path: Path) -> None:
    run, setting = start(tmp_path), federation(guard={"tries": 1, "lr_factor": 0.9})
    make_round(run, setting, 1)
    log = Log("run")
    manifest = make_round(run, setting, 2, lambda c: 0 * c + 600, log)
    assert manifest.server["lr"] == pytest.approx(0.9)
    lowered, *left = manifest.guard
    assert "the server's step is" in lowered and lowered.endswith("is retried with server.lr 0.9 (was 1)")
    assert [note.partition(" is ")[0] for note in left] == [
        "the server's step", "the validation loss",
    ]  # fmt: skip
    assert all(note.endswith(": no retries left; committed as is") for note in left)
    last = [event.kind for event in log.at(2).events()]
    assert last == [Kind.NORM_HIGH, Kind.TRIES_ENDED, Kind.LOSS_HIGH, Kind.TRIES_ENDED]


def test_a_model_that_no_site_could_train_from_is_not_committed_and_the_updates_stay(tmp_path: Path) -> None:
    """In the first round, too, that has no running value; then with what the error says."""
    run = start(tmp_path)
    with pytest.raises(ModelDiverged, match=r"server.lr 0.125, lowered 3 times, .* loss at a, b, c,.* run again"):
        make_round(run, federation(), 1, lambda c: 0 * c + 1e6)
    assert run.round(1) is None
    with pytest.raises(ModelDiverged, match=r"with server.lr 1, has no finite"):
        aggregate_and_commit(run, federation(guard={"tries": 0}), 1)
    manifest = aggregate_and_commit(run, federation(lr=1e-3), 1)
    assert manifest.server["lr"] == 5e-4
    assert ["the validation loss is not finite at a, b, c" in note for note in manifest.guard] == [True]


def test_what_a_quorum_can_train_from_is_not_held_up_by_one_site() -> None:
    evaluations = told(4.0) | {"a": {"loss": LARGEST_LOSS, "perplexity": 1.0, "tokens": 1.0}}
    assert blown_up(evaluations, federation()) == []  # a quorum of 2 of 3
    assert blown_up(evaluations | {"c": evaluations["a"]}, federation()) == ["a", "c"]


def test_a_site_that_comes_or_goes_is_no_jump_of_the_loss() -> None:
    def of(**losses: float) -> dict[str, dict[str, float]]:
        return {site: {"loss": loss, "tokens": 100.0} for site, loss in losses.items()}

    def trouble(scores: dict[str, dict[str, float]], past: list[dict[str, dict[str, float]]]) -> str:
        return str(loss_trouble(jumps(scores, past, 20.0), Guard()) or "")

    past = [of(a=4.1, b=6.0), of(a=4.0, b=6.0), of(a=3.9, b=6.0)]
    assert trouble(of(a=4, b=6, joins=9), past) == ""
    assert trouble(of(joins=9), past) == ""
    assert trouble(of(b=6), past) == ""
    assert trouble(of(a=4), [*past, of(b=6.0)]) == ""
    found = trouble(of(a=5.5, b=7.5), past)
    assert found == "the validation loss is 1.5 above its running value by the median of 2 sites, over 1"
    assert trouble(of(a=5.5, b=7.5, joins=1), past) == "", "two do not speak for three"
    more = [scores | of(c=5.0) for scores in past]
    assert trouble(of(a=5.5, b=7.5, c=6.5, joins=1), more).endswith("by the median of 3 sites, over 1")


def test_the_mean_of_the_moments_is_made_once_however_often_the_round_is_applied(tmp_path: Path) -> None:
    """They do not depend on the server's learning rate: the first try's stay, whatever is found wrong with it."""
    run, setting = start(tmp_path), federation("average")
    shapes = moment_shapes(setting.model, "adamw")
    paths = {site: tmp_path / f"{site}.safetensors" for site in SITES}
    for number, path in enumerate(paths.values()):
        save_file({name: np.full(shape, number / 2, np.float32) for name, shape in shapes.items()}, path)
    for t, change, loss, trouble in ((1, 0.01, 1.0, ""), (2, 0.01, 100.0, "loss"), (3, 100.0, 1.0, "step")):
        for site in SITES:
            train(run, t, site, lambda c, to=change: 0 * c + np.float32(to), [paths[site]])
        candidate = aggregate_round(run, setting, t, list(SITES), {})
        evaluations = told(loss)
        while again := apply_again(run, setting, candidate, evaluations):
            candidate = again
        made = sorted((tmp_path / run.round_dir(t) / "moments").iterdir())
        assert [path.name.split("-")[0] for path in made] == ["exp_avg", "exp_avg_sq"]
        manifest = commit(run, setting, candidate, RoundLog(list(SITES), evaluations))
        assert [entry.path for entry in manifest.moments] == [f"moments/{path.name}" for path in made]
        found = load_file(made[0]) | load_file(made[1])
        assert found.keys() == shapes.keys() and all((value == 0.5).all() for value in found.values())
        assert len(manifest.guard) == (setting.server.guard.tries + 1 if trouble else 0)
        assert all(trouble in note for note in manifest.guard)


def test_the_running_value_is_the_median_of_the_last_rounds() -> None:
    past = [{"loss": value} for value in (100.0, 1.0, 2.0, 50.0, 3.0, 4.0)] + [{"other": 1.0}]
    assert running(past, "loss") == 3.0
    assert running([], "loss") is None
    norms = {"step_norm": 29.0, "model_norm": 1.0}
    assert norm_trouble(norms, [{"step_norm": 3.0}], Guard()) is None
    assert "29, 14.5 times its running value 2" in str(norm_trouble(norms, [{"step_norm": 2.0}], Guard()))
    assert norm_trouble(norms, [{"step_norm": 2.0}], Guard(norm_factor=None)) is None
    assert norm_trouble(norms, [], Guard()) is None
    for loss, trouble in ((3.9, False), (4.1, True)):
        found = jumps(told(loss), [told(3.0)], 20.0)
        assert bool(loss_trouble(found, Guard())) == trouble
        assert loss_trouble(found, Guard(loss_jump=None)) is None
    assert loss_trouble({}, Guard()) is None
