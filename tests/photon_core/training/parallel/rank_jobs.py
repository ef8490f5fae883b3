"""A rank that trains several jobs one after the other: Composer's launcher starts it, test_ranks.py compares."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from photon_core.training.loop import run_local_steps
from photon_core.training.parallel.ranks import join_ranks
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.state.folder import publish, writing


def main(folder: Path) -> None:
    # all that keeps Composer from FSDP without CUDA is that it asks for the current GPU's number
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    all_ranks, results = join_ranks("cpu"), []
    for job, micro_batch, sharded in pickle.loads((folder / "jobs.pickle").read_bytes()):
        ranks = replace(all_ranks, sharded=sharded)
        state = job.view.state_dir.absolute()
        if ranks.first:
            (state / "state").mkdir(parents=True, exist_ok=True)
            with writing(state) as written:
                trained = run_local_steps(job, silent, state, written, Checkpoints(state, job), micro_batch, ranks)
                assert trained is not None
                results.append(publish(state, written, trained, job.key))
        else:
            assert (
                run_local_steps(job, silent, state, Path("/nowhere"), Checkpoints(state, job), micro_batch, ranks)
                is None
            )
        ranks.wait()
    if all_ranks.first:
        (folder / "results.pickle").write_bytes(pickle.dumps(results))


def silent(_: dict[str, Any]) -> None:
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
