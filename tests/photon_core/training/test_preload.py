"""Training as it really runs: in children of a fork server with Composer in it, one of which is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.paths import state_dir
from photon_core.errors import ChildFailed
from photon_core.training.initial import initial_model
from photon_core.training.job import LocalJob, Trained
from photon_core.training.launch import Launcher
from schemas.federation import Federation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(2) as launcher:
        launcher.warm()
        yield launcher


def train_and_die(job: LocalJob, step: int) -> None:
    """Train until that local step, then be killed as by the kernel."""
    from photon_core.training import composing
    from photon_core.training.local import train

    composing.REPORT_SECONDS = 0.0

    def report(values: dict[str, Any]) -> None:
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(job, report)


def touches_cuda() -> bool:
    import torch

    return torch.cuda.is_initialized()


def samples(trained: Trained) -> list[int]:
    return np.fromfile(Path(trained.folder, "samples.u32"), "<u4").tolist()


@pytest.mark.parametrize("step", [3, 5])  # in the middle of the round, and when all its steps are done
def test_a_kill_in_the_second_round_repeats_and_skips_nothing(
    launcher: Launcher, make_site: Callable[..., Federation], tmp_path: Path, step: int
) -> None:
    federation = make_site(60)  # 20 a round: three rounds are one epoch
    files = [str(path) for path in initial_model(federation, tmp_path)]

    def job(t: int) -> LocalJob:
        return LocalJob(federation, "alpha", t, 1, files, "0", (t - 1) * 5, (t - 1, 1) if t > 1 else None)

    def train(t: int) -> Trained:
        trained: Trained = launcher.run("photon_core.training.local:train", {"job": job(t)}, label="alpha / train")
        return trained

    before = set(Path("/dev/shm").iterdir())
    results = [train(1)]
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        launcher.run(train_and_die, {"job": job(2), "step": step}, label="alpha / train")
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if path.name[:6].isdigit()]
    results += [train(2), train(3)]
    seen = [number for result in results for number in samples(result)]
    assert sorted(seen) == list(range(60))
    assert not list((state_dir(federation, "alpha") / "state").glob(".*"))
    assert train(2) == results[1]


def test_children_inherit_no_cuda_and_one_thread_each(launcher: Launcher) -> None:
    assert launcher.run(touches_cuda, label="cuda") is False
    assert launcher.run("torch:get_num_threads", label="threads") == 1


def test_the_launching_process_stays_light() -> None:
    code = "import sys, photon_core.training.launch, photon_core.training.job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
