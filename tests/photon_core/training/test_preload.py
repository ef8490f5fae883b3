"""Training as it really runs: in children of a fork server with Composer in it, one of which is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.errors import ChildFailed
from photon_core.evidence.events import Fact, Kind
from photon_core.jobs.launcher import Launcher
from photon_core.model.init import initial_model
from photon_core.training import entry
from photon_core.training.job import LocalJob
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.view import view_of
from tests.shared_memory import left_behind

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(2, preload=entry.PRELOAD) as launcher:
        launcher.warm()
        yield launcher


def train_and_die(job: LocalJob, step: int) -> None:
    """Train until that local step, then be killed as by the kernel."""
    from photon_core.training import callback
    from photon_core.training.train import train

    callback.REPORT_SECONDS = 0.0

    def report(values: dict[str, Any]) -> None:
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(job, report)


def touches_cuda() -> bool:
    import torch

    return torch.cuda.is_initialized()


def threads() -> int:
    import torch

    return torch.get_num_threads()


def samples(trained: Trained) -> list[int]:
    return np.fromfile(Path(trained.folder, "samples.u32"), "<u4").tolist()


@pytest.mark.parametrize("step", [3, 5])  # in the middle of the round, and when all its steps are done
def test_a_kill_in_the_second_round_repeats_and_skips_nothing(
    launcher: Launcher, make_site: Callable[..., Federation], tmp_path: Path, step: int
) -> None:
    federation = make_site(60)  # 20 a round: three rounds are one epoch
    files = [str(path) for path in initial_model(federation, tmp_path)]

    def job(t: int) -> LocalJob:
        return LocalJob(view_of(federation, "alpha"), t, 1, files, "0", (t - 1) * 5, (t - 1, 1) if t > 1 else None)

    def train(t: int) -> Trained:
        return launcher.run(partial(entry.train, job(t)), label="alpha / train")

    before = set(Path("/dev/shm").iterdir())
    results = [train(1)]
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        launcher.run(partial(train_and_die, job(2), step), label="alpha / train")
    assert not left_behind(before)
    results += [train(2), train(3)]
    seen = [number for result in results for number in samples(result)]
    assert sorted(seen) == list(range(60))
    assert not list((view_of(federation, "alpha").state_dir / "state").glob(".*"))
    assert train(2) == results[1]


def same(left: Any, right: Any) -> bool:
    """Equal all through, tensors bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "dtype"):
        return bool(left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes())
    return bool(left == right)


@pytest.mark.parametrize(
    ("sequences", "options", "kills"),
    [
        (200, {}, [(8, 6)]),
        (200, {"optimizer_state": "reset"}, [(4, 3), (7, 6), (10, 9)]),  # killed three times
        (24, {}, [(8, 6)]),  # the second round's sixth step ends an epoch
        (22, {}, [(8, 6), (9, 9)]),  # as does one between checkpoints, with a shorter batch
        (200, {"checkpoint_steps": None}, [(8, None)]),
    ],
)
def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bits(
    launcher: Launcher,
    make_site: Callable[..., Federation],
    tmp_path: Path,
    sequences: int,
    options: dict[str, Any],
    kills: list[tuple[int, int | None]],
) -> None:
    import torch

    options = {"steps": 10, "checkpoint_steps": 3, **options}
    federation = make_site(sequences, sites=("alpha", "beta"), **options)  # the same data at both
    files = [str(path) for path in initial_model(federation, tmp_path)]

    def job(site: str, t: int) -> LocalJob:
        return LocalJob(view_of(federation, site), t, 1, files, "0", (t - 1) * 10, (t - 1, 1) if t > 1 else None)

    def train(site: str, t: int) -> Trained:
        return launcher.run(partial(entry.train, job(site, t)), label=f"{site} / train")

    train("alpha", 1), train("beta", 1)
    for step, _ in kills:
        with pytest.raises(ChildFailed, match="killed by SIGKILL"):
            launcher.run(partial(train_and_die, job("alpha", 2), step), label="alpha / train")
    alpha, beta = train("alpha", 2), train("beta", 2)

    assert alpha.files == beta.files
    assert samples(alpha) == samples(beta)
    for name in ("train_loss", "last_loss", "delta_norm", "samples"):
        assert alpha.metrics[name] == beta.metrics[name]
    left, right = (torch.load(Path(trained.folder, "training.pt"), weights_only=True) for trained in (alpha, beta))
    assert same(left, right)
    assert (alpha.tokens, alpha.steps) == (beta.tokens, beta.steps)
    steps = [step for _, step in kills if step is not None]
    assert alpha.notes == [Fact(Kind.CHECKPOINT_RESUMED, {"at": step, "steps": 10}) for step in steps]
    assert alpha.metrics.get("resumed_at_step") == (steps[-1] if steps else None)
    assert not beta.notes
    state = view_of(federation, "alpha").state_dir / "state"
    assert sorted(path.name for path in state.iterdir()) == ["000001-0001", "000002-0001", "lock"]


def test_children_inherit_no_cuda_and_one_thread_each(launcher: Launcher) -> None:
    assert launcher.run(touches_cuda, label="cuda") is False
    assert launcher.run(threads, label="threads") == 1


def test_the_launching_process_stays_light() -> None:
    modules = "photon_core.jobs.launcher, photon_core.training.job, photon_core.training.entry"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
