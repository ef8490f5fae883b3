"""PostProcess at the end of a training: the noise of what was trained, and of nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from photon_core.training.exchange import Theta
from photon_core.training.finish import encode
from photon_core.training.state.resume import Resumed
from photon_core.update.codecs.registry import get_codec
from schemas.federation import Federation
from schemas.sections.update import Update
from schemas.view import view_of
from tests.photon_core.training.test_train import Arrays, make_job, silent, theta_zero


def test_other_work_of_the_same_job_meets_other_noise(
    make_site: Callable[..., Federation], tmp_path: Path
) -> None:
    """A time limit ends a retry elsewhere, and the coordinator may hold shards of both: it must not take away one
    from the other."""
    update = Update(clip_norm=100.0, noise_multiplier=1e-3)
    federation = make_site().model_copy(update={"update": update})
    theta = theta_zero(federation)
    job = make_job(federation, theta, tmp_path)
    folder = view_of(federation, "alpha").state_dir
    (folder / "state").mkdir(parents=True)

    def noise(change: float, place: str) -> Arrays:
        trained = {name: torch.from_numpy(value + np.float32(change)) for name, value in theta.items()}
        written = folder / place
        written.mkdir()
        done = encode(
            job, silent, Theta(job.base_files, federation.model), trained, Resumed(None), folder, written
        )
        sent = {name: value for entry in done.files for name, value in load_file(written / entry.path).items()}
        decode = get_codec(done.codec).decode
        return {name: decode(theta[name], sent[name]) - trained[name].numpy() for name in theta}

    first, again, other = noise(0.0, "first"), noise(0.0, "again"), noise(0.1, "other")
    assert all(np.array_equal(first[name], again[name]) for name in theta)
    for name in theta:
        assert np.corrcoef(first[name].reshape(-1), other[name].reshape(-1))[0, 1] < 0.9
