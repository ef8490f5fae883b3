"""Local checkpoints: whose they are, what a damaged or unwritable one costs, and that none is left."""

import dataclasses
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from photon_core.errors import UpdateRejected
from photon_core.evidence.events import Log
from photon_core.model.init import initial_model
from photon_core.training import callback
from photon_core.training.job import LocalJob
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.train import train
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.view import view_of
from tests.photon_core.training.test_train import said

Make = Callable[..., Federation]


class Interrupted(Exception):
    """Takes the place of anything that ends a training between two steps."""


def make_job(federation: Federation, folder: Path, **options: Any) -> LocalJob:
    files = [str(path) for path in initial_model(federation, folder)]
    return dataclasses.replace(LocalJob(view_of(federation, "alpha"), 1, 1, files, "0", 0), **options)


def silent(_: dict[str, Any]) -> None:
    return None


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalJob, int], None]:
    """Train until that local step and no further."""
    monkeypatch.setattr(callback, "REPORT_SECONDS", 0.0)

    def until(job: LocalJob, step: int) -> None:
        def report(values: dict[str, Any]) -> None:
            if values["step"] == step:
                raise Interrupted

        with pytest.raises(Interrupted):
            train(job, report)

    return until


def left(federation: Federation) -> list[str]:
    return sorted(
        path.name for path in (view_of(federation, "alpha").state_dir / "state" / "checkpoint").glob("*")
    )


def result(trained: Trained) -> tuple[list[str], bytes]:
    return [file.sha256 for file in trained.files], Path(trained.folder, "samples.u32").read_bytes()


Interrupt = Callable[[LocalJob, int], None]


def test_only_the_newest_is_kept_and_none_once_published(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    federation = make_site(checkpoint_steps=1)
    job = make_job(federation, tmp_path)
    interrupt(job, 4)
    assert left(federation) == ["000001-0001.pt"]
    saved = Checkpoints(view_of(federation, "alpha").state_dir, job).read(Log("run"))
    assert saved is not None and saved["progress"]["steps"] == 4 and len(saved["trail"]) == 4 * 4 * 4
    other = dataclasses.replace(job, round=2)
    interrupt(other, 1)
    assert left(federation) == ["000002-0001.pt"]
    train(job, silent)
    assert left(federation) == []


def test_muon_resumes_within_a_round_bit_for_bit(make_site: Make, tmp_path: Path, interrupt: Interrupt) -> None:
    job = make_job(make_site(checkpoint_steps=2, optimizer={"name": "muon"}), tmp_path)
    interrupt(job, 3)
    resumed, plain = train(job, silent), train(dataclasses.replace(job, attempt=2), silent)
    assert resumed.metrics["resumed_at_step"] == 2.0
    assert resumed.metrics["first_loss"] == plain.metrics["first_loss"]
    assert result(resumed) == result(plain)


def test_streams_losses_and_averaged_moments_survive_an_interruption(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    options: dict[str, Any] = {"streams": ("news", "code"), "optimizer_state": "average", "micro_batch": 3}
    job = make_job(make_site(checkpoint_steps=2, proximal=0.1, **options), tmp_path)
    plain = train(dataclasses.replace(job, attempt=2), silent)
    interrupt(job, 3)
    resumed = train(job, silent)
    assert result(resumed) == result(plain)
    assert [file.sha256 for file in resumed.moments] == [file.sha256 for file in plain.moments]
    timed = {"tokens_per_second", "seconds", "resumed_at_step"}
    assert {k: v for k, v in resumed.metrics.items() if k not in timed} == {
        k: v for k, v in plain.metrics.items() if k not in timed
    }


def test_one_that_outlived_its_rounds_publication_is_removed(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    job = make_job(federation, tmp_path)
    first = train(job, silent)
    Checkpoints(view_of(federation, "alpha").state_dir, job).write({})
    assert left(federation) == ["000001-0001.pt"]
    assert train(job, pytest.fail) == first
    assert left(federation) == []


def test_another_jobs_is_not_gone_on_from_and_that_is_said(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    federation = make_site(checkpoint_steps=1)
    job = make_job(federation, tmp_path)
    interrupt(dataclasses.replace(job, base_sha256="1"), 3)
    moved = train(job, silent)
    assert said(job, moved) == [
        "site 'alpha': the local checkpoint at step 3 is of another federation file, base model or run; training "
        "of this round restarts"
    ]
    assert "resumed_at_step" not in moved.metrics
    interrupt(dataclasses.replace(job, attempt=2), 3)
    third = train(dataclasses.replace(job, attempt=3), silent)  # trained again on purpose: from the start
    assert not third.notes and result(third) == result(moved)


def test_an_edited_file_costs_no_step_that_it_does_not_change(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    """Killed, or finished and not uploaded: then the operator pauses, adds or fixes something else."""
    federation = make_site(checkpoint_steps=1)
    job = make_job(federation, tmp_path)
    interrupt(job, 3)
    values = federation.model_dump(mode="json")
    values["sites"].append({"name": "beta", "paused": True, "streams": values["sites"][0]["streams"]})
    values["sites"][0]["job_variables"] = {"env": {"OMP_NUM_THREADS": "2"}}
    values["rounds"] |= {"deadline": 60, "report_every": 2}
    values["local"] |= {"checkpoint_steps": 2, "micro_batch": 2}
    values["server"] |= {"lr": 0.5}
    edited = dataclasses.replace(job, view=view_of(Federation.model_validate(values), "alpha"))
    trained = train(edited, silent)
    assert trained.metrics["resumed_at_step"] == 3.0
    assert train(job, pytest.fail) == trained, "finished, and the file is the old one again"
    slower = make_site(checkpoint_steps=1, optimizer={"lr": 1e-3})
    anew = train(dataclasses.replace(job, view=view_of(slower, "alpha")), silent)
    assert anew.files != trained.files
    assert said(job, anew) == [
        "site 'alpha': round 1 was trained, but not uploaded, before the federation file was edited; "
        "training of this round restarts"
    ]
    for run in ("tiny", "another"):  # of which the one from another model, or of another run, is no loss
        other = federation.model_copy(update={"run": run})
        assert not train(dataclasses.replace(job, view=view_of(other, "alpha"), base_sha256="1"), silent).notes


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_damaged_one_is_ignored(
    make_site: Make, tmp_path: Path, interrupt: Interrupt, damage: bytes | None
) -> None:
    federation = make_site(checkpoint_steps=2)
    job = make_job(federation, tmp_path)
    interrupt(job, 3)
    path = view_of(federation, "alpha").state_dir / "state" / "checkpoint" / "000001-0001.pt"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    trained = train(job, silent)
    assert trained.steps == 5 and "resumed_at_step" not in trained.metrics


def test_text_prepared_anew_starts_the_round_afresh(make_site: Make, tmp_path: Path, interrupt: Interrupt) -> None:
    federation = make_site(checkpoint_steps=2)
    job = make_job(federation, tmp_path)
    interrupt(job, 3)
    make_site(150, checkpoint_steps=2)
    trained = train(job, silent)
    assert said(job, trained) == [
        "site 'alpha': the local checkpoint at step 2 of 5 was saved with other streams or proportions; training "
        "of this round restarts"
    ]
    assert len(np.fromfile(Path(trained.folder, "samples.u32"), "<u4")) == 20


def test_what_was_said_before_an_interruption_is_still_said(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    federation = make_site(checkpoint_steps=2)
    job = make_job(federation, tmp_path, round=2, resume=(1, 1))  # whose state is not there
    interrupt(job, 3)
    trained = train(job, silent)
    lost, resumed = said(job, trained)
    assert "state of round 1, attempt 1 is missing" in lost and "step 2 of 5" in resumed
    assert trained.metrics["state_lost"] == 1.0 and trained.metrics["resumed_at_step"] == 2.0


def test_the_rate_counts_only_what_this_process_has_trained(
    make_site: Make, tmp_path: Path, interrupt: Interrupt
) -> None:
    job = make_job(make_site(checkpoint_steps=4), tmp_path)
    interrupt(job, 4)
    trained = train(job, silent)
    assert trained.metrics["tokens_per_second"] * trained.seconds["fit"] == pytest.approx(4 * 16)


def test_a_diverged_training_is_not_gone_on_from(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(checkpoint_steps=1, optimizer={"lr": 1e30}, clip_norm=None)
    with pytest.raises(UpdateRejected, match=r"the loss of local step [2-5] is"):
        train(make_job(federation, tmp_path), silent)
    assert left(federation) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_checkpoint_costs_no_round(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(checkpoint_steps=2, optimizer_state="reset")
    plain = train(make_job(federation, tmp_path), silent)
    update = sum(file.bytes for file in plain.files)
    with largest_file(2 * update):  # a checkpoint is three times an update: parameters and two moments
        trained = train(make_job(federation, tmp_path, attempt=2), silent)
    assert result(trained) == result(plain)
    assert len(trained.notes) == 1
    assert str(trained.notes[0]).startswith("a local checkpoint could not be written: ")
    assert left(federation) == []


def test_a_failed_write_leaves_the_last_one(make_site: Make, tmp_path: Path) -> None:
    federation = make_site()
    view_of(federation, "alpha").state_dir.joinpath("state").mkdir()
    checkpoints = Checkpoints(view_of(federation, "alpha").state_dir, make_job(federation, tmp_path))
    checkpoints.write({"step": 1})
    with largest_file(1 << 16), pytest.raises((OSError, RuntimeError)):
        checkpoints.write({"step": 2, "tensor": torch.zeros(1 << 16)})
    assert checkpoints.read(Log("run")) == {"step": 1}
    assert left(federation) == ["000001-0001.pt"]
