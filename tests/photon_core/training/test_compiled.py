"""torch.compile changes the speed, not the training; where it fails, the file decides."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from photon_core.evidence.events import Log, incidents_of
from photon_core.model.decoder import score
from photon_core.training import compiled as compiled_module
from photon_core.training.compiled import FOLDER, Compiled, choose_score
from photon_core.training.parallel.ranks import Ranks
from photon_core.training.train import train
from schemas.federation import Federation
from schemas.view import view_of
from tests.photon_core.training.test_train import apply, make_job, silent, theta_zero

Make = Callable[..., Federation]


def broken(_module: Any, _inputs: Any) -> Any:
    raise OSError("no compiler here")


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_where_the_file_leaves_it_open_a_failure_is_a_note() -> None:
    log = Log("run")
    compiled = Compiled(double, log, backend=broken)
    for _ in range(2):
        assert compiled(torch.ones(3)).tolist() == [2, 2, 2]
    (note,) = incidents_of(log)
    assert "torch.compile failed, so training continued without it" in str(note) and "no compiler here" in str(
        note
    )


def test_where_the_file_wants_it_a_failure_is_one() -> None:
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="no compiler here"):
        Compiled(double, None, backend=broken)(torch.ones(3))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_who_compiles(make_site: Make) -> None:
    def compiles(device: str, ranks: Ranks, **local: Any) -> bool:
        return choose_score(view_of(make_site(**local), "alpha"), device, ranks, Log("run")) is not score

    one, sharded = Ranks(), Ranks(sharded=True)
    assert [compiles(device, one) for device in ("cpu", "cuda")] == [False, True]
    assert [compiles(device, one, compile=False) for device in ("cpu", "cuda")] == [False, False]
    assert [compiles(device, one, compile=True) for device in ("cpu", "cuda")] == [True, True]
    assert not compiles("cuda", sharded) and not compiles("cuda", sharded, compile=True)
    folder = view_of(make_site(), "alpha").cache_dir.absolute() / FOLDER
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder), "for the next round"


def test_a_compiled_training_is_the_same_training(
    make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured, differentiated and run by torch.compile; kernels are written for the GPU alone, see below: for a
    processor they take g++ a minute."""
    monkeypatch.setattr(compiled_module, "Compiled", partial(Compiled, backend="aot_eager"))
    found: list[Any] = []
    for attempt, compiled in enumerate((False, True), 1):
        # micro-batches of 3 and 1: two shapes. eps: some gradients are zero but for rounding, of which AdamW would
        # make steps
        options = {"optimizer": {"lr": 3e-3, "eps": 1e-2}, "micro_batch": 3, "compile": compiled}
        federation = make_site(streams=("news", "code"), **options)
        theta = theta_zero(federation)
        torch._dynamo.utils.counters.clear()
        trained = train(make_job(federation, theta, tmp_path, attempt=attempt), silent)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2) == compiled
        found.append((trained, apply(theta, trained)))
    (plain, expected), (compiled, theta) = found
    assert compiled.notes == plain.notes == []
    assert max(np.abs(theta[key] - expected[key]).max() for key in expected) < 1e-5
    for key in ("train_loss", "loss/news", "loss/code", "activation_norm", "gradient_norm"):
        assert compiled.metrics[key] == pytest.approx(plain.metrics[key], rel=1e-5), key


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_compiles_by_itself(make_site: Make, tmp_path: Path) -> None:
    losses = []
    for attempt, options in enumerate(({"compile": False}, {}), 1):
        federation = make_site(device="cuda", precision="amp_bf16", **options)
        trained = train(make_job(federation, theta_zero(federation), tmp_path, attempt=attempt), silent)
        assert trained.notes == []
        losses.append(trained.metrics["train_loss"])
    assert any((view_of(federation, "alpha").cache_dir / FOLDER).rglob("*"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
