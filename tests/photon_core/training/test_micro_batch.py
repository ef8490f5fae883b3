"""The search for the micro-batch: right for every threshold, within a real limit, kept, and searched again."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from photon_core.errors import FederationError
from photon_core.evidence.events import Log
from photon_core.model.cost import training_memory
from photon_core.model.init import initial_model, initial_tensor
from photon_core.model.shapes import parameter_shapes
from photon_core.training import callback, micro_batch, out_of_memory
from photon_core.training import train as train_module
from photon_core.training.job import LocalJob
from photon_core.training.micro_batch import FILE, GIGABYTE, find_micro_batch, search
from photon_core.training.train import train
from photon_core.update.codecs.registry import get_codec
from schemas.federation import Federation
from schemas.sections.hardware import Hardware
from schemas.view import view_of
from tests.photon_core.training.test_train import said

Make = Callable[..., Federation]
LONG = {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": 257, "max_seq_len": 512}


def test_the_search_finds_every_threshold_from_any_guess() -> None:
    for largest in (1, 2, 7, 64):
        for threshold in range(largest + 1):
            for guess in (1, largest // 2, threshold, 10 * largest):
                found, trials = search(largest, guess, lambda size, t=threshold: size <= t)
                assert found == threshold
                assert len(trials) <= 3 + largest.bit_length()
    assert list(search(64, 20, lambda size: size <= 21)[1]) == [20, 25, 22, 21]


def with_memory(federation: Federation, gigabytes: float | None, **model: Any) -> Federation:
    values = federation.model_dump(mode="json")
    values["local"] |= {"memory_gb": gigabytes, "micro_batch": "auto", "batch_size": 32}
    values["model"] |= model
    return Federation.model_validate(values)


@pytest.mark.slow
def test_the_largest_that_stays_within_the_limit(make_site: Make, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    federation = make_site()
    resident = micro_batch.process_status("VmRSS")
    model = federation.model.model_copy(update=LONG)
    room = 120e6 + 1.4 * training_memory(model, 12).total  # the libraries' own, and a CPU allocator's waste
    limit = (resident + room) / micro_batch.MARGIN / GIGABYTE
    found = find_micro_batch(view_of(with_memory(federation, limit, **LONG), "alpha"), tmp_path)
    kept = json.loads((tmp_path / FILE).read_bytes())
    assert found is not None and kept["trials"][str(found)] and not kept["trials"][str(found + 1)]
    assert 6 <= found <= 24, "the estimate, which is no measurement, says 12"


def test_found_once_and_again_when_anything_changes(
    make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = micro_batch.fits
    monkeypatch.setattr(micro_batch, "fits", lambda question, size: asked.append(size) or real(question, size))
    federation = make_site()
    find = lambda **options: find_micro_batch(view_of(with_memory(federation, **options), "alpha"), tmp_path)  # noqa: E731
    assert find(gigabytes=None) == 32 and asked == [32], "everything fits: one trial"
    assert find(gigabytes=None) == 32 and len(asked) == 1
    assert find(gigabytes=100) == 32 and len(asked) == 2, "another limit"
    assert find(gigabytes=100, n_layers=3) == 32 and len(asked) == 3, "another model"
    assert find(gigabytes=100, n_layers=3) == 32 and len(asked) == 3
    (tmp_path / FILE).write_bytes(b"damaged")
    assert find(gigabytes=100, n_layers=3) == 32 and len(asked) == 4
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    assert find(gigabytes=100, n_layers=3) == 32 and len(asked) == 5, "other hardware"


def test_the_smaller_of_two_limits_counts(make_site: Make) -> None:
    """A GPU of 80 GB that others share."""
    federation = with_memory(make_site(), 40)
    for gigabytes, limit in ((80, 40), (30, 30), (None, 40)):
        hardware = Hardware(tflops=1, memory_gb=gigabytes)
        sites = [federation.sites[0].model_copy(update={"hardware": hardware})]
        found = micro_batch._question(view_of(federation.model_copy(update={"sites": sites}), "alpha"), 1)
        assert found.limit == limit * GIGABYTE
    fixed = federation.model_copy(update={"local": federation.local.model_copy(update={"micro_batch": 4})})
    assert view_of(fixed, "alpha").memory_gb is None


@pytest.mark.parametrize("starved", [True, False])
def test_found_anew_after_a_training_that_ran_out_of_memory(
    make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starved: bool
) -> None:
    """Another process on the device may take more of it than during the search."""
    federation = make_site(micro_batch="auto")
    kept = view_of(federation, "alpha").state_dir / FILE
    real = train_module.run_local_steps

    def work(*_: Any) -> Any:
        assert kept.exists()
        torch.empty(1 << 60 if starved else -1)  # torch's own errors

    save_file({name: initial_tensor(name, federation.model, 1) for name in parameter_shapes(federation.model)},
              tmp_path / "theta.safetensors")  # fmt: skip
    job = LocalJob(view_of(federation, "alpha"), 1, 1, [str(tmp_path / "theta.safetensors")], "0", 0)
    monkeypatch.setattr(train_module, "run_local_steps", work)
    with pytest.raises(RuntimeError, match="not enough memory|can't allocate" if starved else "negative"):
        train(job, lambda _: None)
    left = json.loads(kept.read_bytes())
    assert ("micro_batch" in left) != starved and "trying" not in left
    monkeypatch.setattr(train_module, "run_local_steps", real)
    # a trial said that 4 fits and training did not: the same number would not fit the next time either
    assert train(job, lambda _: None).metrics["micro_batch"] == (2 if starved else 4)


def test_found_anew_after_a_training_that_the_kernel_killed_and_nobody_else(
    make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is really killed; the kernel's count is the test's file, or no other program would be safe."""
    federation = make_site(micro_batch="auto")
    kept, count = view_of(federation, "alpha").state_dir / FILE, tmp_path / "vmstat"
    files = [str(path) for path in initial_model(federation, tmp_path)]
    job = LocalJob(view_of(federation, "alpha"), 1, 1, files, "0", 0)
    monkeypatch.setattr(out_of_memory, "VMSTAT", count)
    monkeypatch.setattr(callback, "REPORT_SECONDS", 0.0)

    def killed_in_its_first_step(kills: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "run_local_steps", lambda *_: _die())
            child = multiprocessing.get_context("fork").Process(target=train, args=(job, print))
            child.start()
            child.join()
        assert child.exitcode == -signal.SIGKILL
        count.write_text(f"nr_free_pages 9\noom_kill {kills}\n")

    count.write_text("nr_free_pages 9\noom_kill 2\n")
    killed_in_its_first_step(kills=2)
    log = Log("run")
    assert find_micro_batch(view_of(federation, "alpha"), kept.parent, 1, log) == 4 and not log.events(), (
        "a person's kill -9"
    )
    killed_in_its_first_step(kills=3)
    tried = []
    trained = train(job, lambda _: tried.append("trying" in json.loads(kept.read_bytes())))
    assert trained.metrics["micro_batch"] == 2 and tried == [True, False, False, False, False]
    assert said(job, trained) == [
        "site 'alpha': the kernel killed the last training, which ran out of memory with 4 sequences in the model "
        "at once (micro_batch: auto); the micro-batch is now 2"
    ]
    count.write_text("oom_kill 9\n")
    assert find_micro_batch(view_of(federation, "alpha"), kept.parent, 1, log) == 2 and not log.events(), (
        "it got through"
    )


def test_the_kernel_tells_how_often_it_has_killed() -> None:
    assert "\noom_kill " in out_of_memory.VMSTAT.read_text()


def test_smaller_ones_after_a_training_that_ran_out_of_memory() -> None:
    after = micro_batch._less_than
    assert [after(32, failed) for failed in (None, 32, 20, 16, 3, 2, 1)] == [32, 16, 11, 11, 2, 1, 1]
    assert all(after(batch, failed) < failed for batch in range(2, 40) for failed in range(2, batch + 1))


def test_a_limit_is_the_whole_process_on_a_processor_and_the_gpus_memory_on_a_gpu(make_site: Make) -> None:
    federation, free = make_site(), 80 * GIGABYTE
    for device, limit, room in (("cpu", 20, 16), ("cuda", 20, 19), ("cuda", 100, 80), ("cuda", None, 76)):
        declared = limit and limit * GIGABYTE
        question = micro_batch.Question(federation.model, federation.local, device, declared)
        assert micro_batch._room(question, 3 * GIGABYTE, free) == room * GIGABYTE


def test_a_number_is_taken_as_it_is(make_site: Make, tmp_path: Path) -> None:
    assert find_micro_batch(view_of(make_site(), "alpha"), tmp_path) is None
    federation = make_site(micro_batch=3)
    assert find_micro_batch(view_of(federation, "alpha"), tmp_path) == 3
    site = federation.sites[0].model_copy(update={"micro_batch": 2})
    assert find_micro_batch(view_of(federation.model_copy(update={"sites": [site]}), "alpha"), tmp_path) == 2
    assert not (tmp_path / FILE).exists()


def test_too_little_for_one_sequence(make_site: Make, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"site 'alpha': not one sequence of 16 tokens trains in 0\.01 GB"):
        find_micro_batch(view_of(with_memory(make_site(), 0.01), "alpha"), tmp_path)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _allocate(gigabytes: int) -> int:
    micro_batch.forbid_more("cpu", GIGABYTE)
    return torch.ones(gigabytes * GIGABYTE // 4).numel()


def test_what_a_trial_dies_of_is_an_answer_and_not_the_end() -> None:
    assert micro_batch._in_child(_die) is None
    assert micro_batch._in_child(_allocate, 100) is None
    assert micro_batch._in_child(_allocate, 0) == 0


def test_micro_batches_leave_the_result_as_it_is(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(batch_size=8)
    theta = {
        name: initial_tensor(name, federation.model, federation.seed)
        for name in parameter_shapes(federation.model)
    }
    file = tmp_path / "theta.safetensors"
    save_file(theta, file)
    ends = []
    for attempt, size in enumerate((None, 3, 8, "auto"), 1):
        federation = make_site(batch_size=8, micro_batch=size)
        trained = train(LocalJob(view_of(federation, "alpha"), 1, attempt, [str(file)], "0", 0), lambda _: None)
        ends.append(_end(theta, trained))
        assert trained.metrics.get("micro_batch") == {"auto": 8.0, None: None}.get(size, size)
        assert trained.tokens == 5 * 8 * 16
    for end in ends[1:]:
        assert all(np.abs(end[name] - ends[0][name]).max() < 1e-5 for name in theta)
    assert all(np.array_equal(ends[0][name], ends[2][name]) for name in theta), "one micro-batch is the batch"
    assert (view_of(federation, "alpha").state_dir / FILE).exists()


def _end(theta: dict[str, Any], trained: Any) -> dict[str, Any]:
    from safetensors.numpy import load_file

    decode = get_codec(trained.codec).decode
    changes = {}
    for entry in trained.files:
        changes.update(load_file(Path(trained.folder, entry.path)))
    end = {name: decode(theta[name], changes[name]) for name in theta}
    for name in end:
        if name.endswith("Wqkv.bias"):  # softmax does not see keys' biases: their gradient is rounding alone
            end[name] = np.delete(end[name], np.s_[32:64])
    return end
