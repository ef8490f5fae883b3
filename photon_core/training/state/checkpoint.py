"""The local checkpoint: a training that is killed within a round resumes from it. It never leaves the site.

    <state_dir>/state/checkpoint/000007-0001.pt     the newest of the round and attempt in progress

There is one file, and the next checkpoint replaces it atomically. The checkpoint of another job is not used, and
the log reports it. The file is removed once the round's state is published. Files with other names are not
Photon's, and are kept. Child processes only.
"""

import pickle
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from photon_core.evidence.events import Kind, Log
from photon_core.files import TEMPORARY, clear, whole_file
from photon_core.training.job import LocalJob

FOLDER = "checkpoint"
OURS = re.compile(rf"\d{{6,}}-\d{{4,}}\.(pt|writing)|{TEMPORARY.pattern}")


class Checkpoints:
    """The checkpoint of one job. Use it under `folder.exclusive`.

    Args:
        state_dir: private folder of the site.
        job: training job.
    """

    def __init__(self, state_dir: Path, job: LocalJob) -> None:
        self.folder = state_dir / "state" / FOLDER
        self.path = self.folder / f"{job.round:06d}-{job.attempt:04d}.pt"
        self.key = job.key

    def read(self, log: Log) -> dict[str, Any] | None:
        """The values of the last `write`, on the CPU; None if this job has no checkpoint, or if it is damaged.

        Args:
            log: log that gets an event if the checkpoint of this site, round and attempt belongs to another job:
                its steps are lost.
        """
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        if not isinstance(saved, dict):
            return None
        values: dict[str, Any] = saved["values"]
        if saved["key"] == self.key:
            return values
        log.append(Kind.CHECKPOINT_FOREIGN, at=values["progress"]["steps"])
        return None

    def write(self, values: dict[str, Any]) -> None:
        """Replace the last checkpoint atomically, and sync the disk.

        Args:
            values: tensors, numbers, texts, and dicts, lists and tuples of them.

        Raises:
            OSError, RuntimeError: the checkpoint could not be written; the last one is unchanged.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for left in self.folder.iterdir():
            if left != self.path and OURS.fullmatch(left.name):
                left.unlink()
        with whole_file(self.path) as file:
            torch.save({"key": self.key, "values": values}, file)

    def drop(self) -> None:
        """Remove every checkpoint of the site: its round has ended."""
        with suppress(OSError):
            clear(self.folder, OURS)


def get_random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, in types for torch.load with weights_only."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `get_random_state`. GPU generators are restored only if the number of GPUs is the same."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
