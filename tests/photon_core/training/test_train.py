"""Local training: equal to one uninterrupted Composer run bit for bit, whatever is resumed, lost or repeated."""

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typing_extensions import override

from photon_core.data.shared_memory import release
from photon_core.data.stream import train_dataset
from photon_core.errors import CorruptFile, FederationError, PhotonError, UpdateRejected
from photon_core.model.decoder import PhotonModel, initial_decoder
from photon_core.model.init import initial_tensor
from photon_core.model.shapes import moment_shapes, parameter_shapes
from photon_core.training.job import LocalJob
from photon_core.training.optimizer.build import make_optimizer
from photon_core.training.state.folder import state_folder
from photon_core.training.train import train
from photon_core.update.codecs.registry import get_codec
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.sections.update import Update
from schemas.view import view_of
from tests.photon_core.training.trail import locate
from tests.shared_memory import left_behind

Make = Callable[..., Federation]
Arrays = dict[str, np.ndarray[Any, Any]]


def silent(_: dict[str, Any]) -> None:
    return None


def said(job: LocalJob, trained: Trained) -> list[str]:
    """What a training's notes say to people."""
    return [str(job.log().add(note)) for note in trained.notes]


def theta_zero(federation: Federation) -> Arrays:
    model = federation.model
    return {name: initial_tensor(name, model, federation.seed) for name in parameter_shapes(model)}


def make_job(federation: Federation, theta: Arrays, folder: Path, round: int = 1, **options: Any) -> LocalJob:
    file = folder / f"theta-{round - 1}.safetensors"
    save_file(theta, file)
    options.setdefault("global_step", (round - 1) * federation.local.steps)
    options.setdefault("resume", (round - 1, 1) if round > 1 else None)
    view, attempt = view_of(federation, federation.sites[0].name), options.pop("attempt", 1)
    return LocalJob(view, round, attempt, [str(file)], f"hash-{round}", **options)


def apply(theta: Arrays, trained: Trained) -> Arrays:
    """fedavg with server lr 1 and one site: theta' = theta_k."""
    decode = get_codec(trained.codec).decode
    changes = {}
    for entry in trained.files:
        changes.update(load_file(Path(trained.folder, entry.path)))
    assert changes.keys() == theta.keys()
    return {name: decode(theta[name], changes[name]) for name in theta}


def rounds(federation: Federation, folder: Path, count: int) -> tuple[Arrays, list[Trained]]:
    theta, results = theta_zero(federation), []
    for t in range(1, count + 1):
        results.append(train(make_job(federation, theta, folder, t), silent))
        theta = apply(theta, results[-1])
    return theta, results


def samples(trained: Trained) -> list[int]:
    return np.fromfile(Path(trained.folder, "samples.u32"), "<u4").tolist()


def uninterrupted(federation: Federation, steps: int) -> Arrays:
    """One Composer run, put together here from Composer's, streaming's and torch's own parts."""
    from composer import Trainer
    from composer.algorithms import GradientClipping
    from composer.core import Callback
    from torch.utils.data import DataLoader

    local, total = federation.local, federation.schedule_steps

    class Rate(Callback):
        @override
        def batch_start(self, state: Any, logger: Any) -> None:
            step = int(state.timestamp.batch)
            warmup, alpha = local.schedule.warmup_steps, local.schedule.alpha
            for group, lr in zip(state.optimizers[0].param_groups, peaks, strict=True):
                if step < warmup:
                    rate = lr * (step + 1) / warmup
                else:
                    done = min(1.0, (step - warmup) / (total - warmup))
                    rate = lr * (alpha + (1 - alpha) * 0.5 * (1 + math.cos(math.pi * done)))
                group["lr"] = rate

    torch.set_num_threads(1)
    model = PhotonModel(initial_decoder(federation.model, federation.seed))
    section = local.optimizer
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), section.lr, section.betas, section.eps, section.weight_decay, fused=True
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    if section.name == "muon":  # test_muon.py holds it against its definition
        optimizer = make_optimizer(model.decoder, section)
        peaks = [section.matrix_lr, section.lr]
    dataset = train_dataset(view_of(federation, "alpha"), federation.seed)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(dataset, batch_size=local.batch_size),
        optimizers=optimizer,
        algorithms=[] if local.clip_norm is None else [GradientClipping("norm", local.clip_norm)],
        callbacks=[Rate()],
        max_duration=f"{steps}ba",
        seed=federation.seed,
        device="cpu",
        precision="fp32",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    dataset._iterator.exit()
    release(dataset)
    return {name: value.detach().numpy() for name, value in model.decoder.state_dict().items()}


@pytest.mark.parametrize("sequences", [200, 30])  # 30: over the end of an epoch, whose last batch is short
def test_rounds_equal_one_uninterrupted_run(make_site: Make, tmp_path: Path, sequences: int) -> None:
    federation = make_site(sequences)
    theta, results = rounds(federation, tmp_path, 3)
    expected = uninterrupted(federation, 15)
    for name in expected:
        assert np.array_equal(theta[name].view(np.int32), expected[name].view(np.int32)), name
    assert results[2].metrics["train_loss"] < results[0].metrics["train_loss"]


def test_muon_goes_on_too(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(optimizer={"name": "muon", "matrix_lr": 0.01, "lr": 3e-3, "weight_decay": 0.1})
    theta, results = rounds(federation, tmp_path, 3)
    expected = uninterrupted(federation, 15)
    assert all(np.array_equal(theta[name], expected[name]) for name in expected)
    state = torch.load(Path(results[-1].folder, "training.pt"), weights_only=True)["optimizer"]
    assert [sorted(values) for values in state.values()].count(["momentum"]) == 2 * 4
    assert results[2].metrics["train_loss"] < results[0].metrics["train_loss"]


def test_another_optimizer_starts_afresh_and_says_so(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    theta = theta_zero(federation)
    train(make_job(federation, theta, tmp_path), silent)
    job = make_job(make_site(optimizer={"name": "muon"}), theta, tmp_path, 2)
    second = train(job, silent)
    assert second.metrics["state_lost"] == 1.0
    assert "was saved with the optimizer adamw; the state of muon is reset" in said(job, second)[0]


@pytest.mark.parametrize("optimizer", [{"lr": 3e-3}, {"name": "muon", "matrix_lr": 0.01, "lr": 3e-3}])
def test_the_averaged_moments_of_one_site_are_its_own(
    make_site: Make, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    federation = make_site(optimizer=optimizer, optimizer_state="average")
    theta, moments = theta_zero(federation), []
    for t in range(1, 4):
        job = make_job(federation, theta, tmp_path, t, moment_files=moments)
        trained = train(job, silent)
        theta = apply(theta, trained)
        moments = [str(Path(trained.folder, entry.path)) for entry in trained.moments]
    expected = uninterrupted(federation, 15)
    assert all(np.array_equal(theta[name], expected[name]) for name in expected)
    found = {name: entry.shape for file in trained.moments for name, entry in file.tensors.items()}
    assert found == moment_shapes(federation.model, federation.local.optimizer.name)


def test_averaged_moments_are_what_a_round_starts_from(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(optimizer_state="average")
    theta = theta_zero(federation)
    first = train(make_job(federation, theta, tmp_path), silent)
    moments: Arrays = {}
    for entry in first.moments:
        moments |= load_file(Path(first.folder, entry.path))
    doubled = tmp_path / "doubled.safetensors"
    save_file({name: 2 * value for name, value in moments.items()}, doubled)
    own = train(make_job(federation, theta, tmp_path, 2), silent)
    given = train(make_job(federation, theta, tmp_path, 2, attempt=2, moment_files=[str(doubled)]), silent)
    assert own.files != given.files
    save_file({name: value for name, value in moments.items() if "wpe" not in name}, doubled)
    with pytest.raises(CorruptFile, match=r"tensor 'exp_avg.wpe.weight' is absent"):
        train(make_job(federation, theta, tmp_path, 2, attempt=3, moment_files=[str(doubled)]), silent)


def test_two_streams_of_a_site_go_on_too(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(24, streams=("news", "code"))  # 48 samples an epoch, 60 trained
    theta, _ = rounds(federation, tmp_path, 3)
    expected = uninterrupted(federation, 15)
    assert all(np.array_equal(theta[name], expected[name]) for name in expected)


def test_samples_of_two_streams_are_told_apart(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(10, streams=("news", "code"))  # 20 samples an epoch, and a round
    _, results = rounds(federation, tmp_path, 1)
    trained = samples(results[0])
    assert sorted(trained) == list(range(20))
    places = locate(view_of(federation, "alpha"), trained)
    assert sorted(places) == [(name, number) for name in ("code", "news") for number in range(10)]


def test_sites_with_the_same_data_send_the_same_update(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(sites=("alpha", "beta"))
    job = make_job(federation, theta_zero(federation), tmp_path)
    other = dataclasses.replace(job, view=view_of(federation, "beta"))
    alpha, beta = train(job, silent), train(other, silent)
    assert alpha.files == beta.files and alpha.folder != beta.folder


def test_an_epoch_that_ends_with_a_round(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(20)  # one epoch is one round
    theta, results = rounds(federation, tmp_path, 3)
    expected = uninterrupted(federation, 15)
    assert all(np.array_equal(theta[name], expected[name]) for name in expected)
    for result in results:
        assert sorted(samples(result)) == list(range(20))


def test_no_sample_is_repeated_or_skipped_within_an_epoch(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(47)
    _, results = rounds(federation, tmp_path, 5)
    seen = [number for result in results for number in samples(result)]
    for start in range(0, len(seen), 47):
        epoch = seen[start : start + 47]
        assert len(set(epoch)) == len(epoch)
    assert sorted(seen[:47]) == list(range(47))
    assert seen[:47] != sorted(seen[:47]) and seen[:47] != seen[47:94]


def test_optimizer_state_can_be_reset(make_site: Make, tmp_path: Path) -> None:
    kept, _ = rounds(make_site(), tmp_path, 2)
    again = tmp_path / "again"
    again.mkdir()
    federation = make_site(optimizer_state="reset")
    reset, results = rounds(federation, again, 2)
    assert any(not np.array_equal(kept[name], reset[name]) for name in kept)
    saved = torch.load(Path(results[0].folder, "training.pt"), weights_only=True)
    assert saved["optimizer"] is None and saved["samples"] == 20


def test_result_and_reports(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    reports: list[dict[str, Any]] = []
    theta = theta_zero(federation)
    before = set(Path("/dev/shm").iterdir())
    folder = tempfile.gettempdir()
    trained = train(make_job(federation, theta, tmp_path), reports.append)
    assert not left_behind(before)
    assert tempfile.gettempdir() == folder
    assert trained.steps == 5 and trained.tokens == 5 * 4 * 16 and not trained.notes
    assert reports[-1]["step"] == reports[-1]["steps"] == 5
    assert reports[-1]["loss"] == trained.metrics["last_loss"]
    assert set(trained.seconds) == {"load", "dataset", "trainer", "fit", "evaluate", "save", "encode"}
    end = apply(theta, trained)
    norm = math.sqrt(sum(float(((end[name] - theta[name]).astype(np.float64) ** 2).sum()) for name in theta))
    assert trained.metrics["delta_norm"] == pytest.approx(norm, rel=1e-5)
    assert not list((view_of(federation, "alpha").state_dir / "state").glob(".*"))


def test_finished_training_is_not_repeated_unless_something_differs(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    job = make_job(federation, theta_zero(federation), tmp_path)
    first = train(job, silent)
    assert train(job, pytest.fail) == first
    Path(first.folder, first.files[0].path).write_bytes(b"damaged")
    repaired = train(job, silent)
    assert repaired.files == first.files
    moved = train(dataclasses.replace(job, global_step=7), silent)
    assert moved.files != first.files


def test_large_files_of_rounds_long_past_are_dropped(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(steps=1, schedule={})
    rounds(federation, tmp_path, 5)
    folder = view_of(federation, "alpha").state_dir / "state"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"00000{t}-0001" for t in range(1, 6)), "lock"]
    for name in ("training.pt", "update"):
        assert sorted(path.parent.name[5] for path in folder.glob(f"*/{name}")) == ["3", "4", "5"]
    assert len(list(folder.glob("*/samples.u32"))) == 5


def test_a_lost_or_damaged_state_is_said(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    theta = theta_zero(federation)
    train(make_job(federation, theta, tmp_path), silent)
    (state_folder(view_of(federation, "alpha").state_dir, 1, 1) / "training.pt").write_bytes(b"damaged")
    job = make_job(federation, theta, tmp_path, 2)
    second = train(job, silent)
    assert second.metrics["state_lost"] == 1.0
    assert "round 1, attempt 1 is missing or damaged" in said(job, second)[0]


def test_another_mix_begins_a_new_epoch_and_says_so(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    theta = theta_zero(federation)
    train(make_job(federation, theta, tmp_path), silent)
    make_site(150)  # the site's text has changed
    job = make_job(federation, theta, tmp_path, 2)
    second = train(job, silent)
    assert second.metrics["stream_restarted"] == 1.0 and "other streams or proportions" in said(job, second)[0]
    assert set(samples(second)) <= set(range(150))
    afresh = train(make_job(federation, theta, tmp_path, attempt=2), silent)
    assert samples(second) != samples(afresh)  # not those of the very beginning again


def test_divergence_rejects_the_update_by_name(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    theta = theta_zero(federation)
    theta["norm_f.bias"][:] = np.nan
    with pytest.raises(
        UpdateRejected, match="'alpha' rejected: training diverged: the loss of local step 1 is nan"
    ):
        train(make_job(federation, theta, tmp_path), silent)
    assert [path.name for path in (view_of(federation, "alpha").state_dir / "state").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("norm_f.weight", "the gradients' norm of local step 1"),
        ("wpe.weight", "its metric 'activation_norm'"),
    ],
)
def test_no_number_of_an_update_is_infinite(make_site: Make, tmp_path: Path, tensor: str, what: str) -> None:
    federation = make_site(steps=1, schedule={"warmup_steps": 0})
    theta = theta_zero(federation)
    theta[tensor] *= np.float32(3e19)
    with pytest.raises(UpdateRejected, match=f"'alpha' rejected: training diverged: {what} is inf"):
        train(make_job(federation, theta, tmp_path), silent)


def test_a_model_of_another_shape_is_refused(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    theta = theta_zero(federation)
    theta["wpe.weight"] = theta["wpe.weight"][:-1]
    with pytest.raises(CorruptFile, match=r"'wpe.weight' is F32 \[15, 32\].*model it is F32 \[16, 32\]"):
        train(make_job(federation, theta, tmp_path), silent)
    del theta["wpe.weight"]
    with pytest.raises(CorruptFile, match=r"'wpe\.weight' is absent"):
        train(make_job(federation, theta, tmp_path), silent)
    job = make_job(federation, theta, tmp_path)
    Path(job.base_files[0]).write_bytes(b"\x10")
    with pytest.raises(CorruptFile, match="not a readable safetensors file"):
        train(job, silent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can")
def test_what_the_machine_cannot_do_is_refused(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(precision="amp_bf16", device="auto")
    with pytest.raises(FederationError, match=r"local\.precision is amp_bf16.*write fp32"):
        train(make_job(federation, theta_zero(federation), tmp_path), silent)


def test_composers_loggers_go_on_where_the_last_round_stopped(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(loggers=[{"name": "file", "options": {"flush_interval": 1}}])
    train(make_job(federation, theta_zero(federation), tmp_path, 3, resume=None), silent)
    text = (view_of(federation, "alpha").state_dir / "log" / "composer-tiny-alpha.log").read_text()
    assert "learning_rate" in text and "loss/train/total" in text
    assert "time/batch: 14" in text or '"time/batch": 14' in text


def test_wrong_logger_options_are_named(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(loggers=[{"name": "file", "options": {"colour": "red"}}])
    with pytest.raises(PhotonError, match=r"local\.loggers: cannot start 'file'.*colour"):
        train(make_job(federation, theta_zero(federation), tmp_path), silent)


def test_what_a_lossy_codec_loses_goes_on_to_the_next_round(make_site: Make, tmp_path: Path) -> None:
    """Kept in the private state, damaged nowhere by a kill in between; the update is much smaller."""
    federation = make_site(200)
    update = Update(codec="topk", block=64, top_k=0.125, clip_norm=0.2, noise_multiplier=1e-4)
    federation = federation.model_copy(update={"update": update})
    theta = theta_zero(federation)
    first = train(make_job(federation, theta, tmp_path, 1), silent)
    assert first.codec == "topk:64:8"
    assert sum(entry.bytes for entry in first.files) * 8 < sum(a.nbytes for a in theta.values())
    assert "unclipped_norm" not in first.metrics, "noise hides it"
    kept = torch.load(Path(first.folder, "training.pt"), weights_only=True)["feedback"]
    assert kept.keys() == theta.keys()

    theta_1 = apply(theta, first)
    second = train(make_job(federation, theta_1, tmp_path, 2), silent)
    again = train(make_job(federation, theta_1, tmp_path, 2, attempt=2), silent)  # a retry: other noise
    assert [e.sha256 for e in again.files] != [e.sha256 for e in second.files]
    shutil.rmtree(again.folder)
    once_more = train(make_job(federation, theta_1, tmp_path, 2, attempt=2), silent)
    assert [e.sha256 for e in once_more.files] == [e.sha256 for e in again.files]
    kept_2 = torch.load(Path(second.folder, "training.pt"), weights_only=True)["feedback"]
    assert any(not torch.equal(kept[name], kept_2[name]) for name in kept)

    plain = federation.model_copy(update={"update": Update()})  # nothing is lost, and what was lost waits
    third = train(make_job(plain, apply(theta_1, second), tmp_path, 3), silent)
    kept_3 = torch.load(Path(third.folder, "training.pt"), weights_only=True)["feedback"]
    assert all(torch.equal(kept_2[name], kept_3[name]) for name in kept_2)
