"""The processes that train one job together, each on a device of its own. Child processes only."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

REQUEST = "request.pickle"
REPORTS = "reports"
ANSWER = "answer-{}.pickle"
LEDGER = "shared-memory-{}"

TIMEOUT = 1800.0  # seconds that a rank waits for the others, which may be writing a checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train one job.

    Args:
        rank: its number; 0 keeps the state, writes the update and speaks for all.
        size: how many there are.
        device: cpu or cuda.
        sharded: FSDP spreads the model over them; else each holds the whole.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    sharded: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of a global batch's samples are this rank's: equal parts, the first ones one longer."""
        each, more = divmod(count, self.size)
        low = self.rank * each + min(self.rank, more)
        return slice(low, low + each + (self.rank < more))

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ranks' values added up, the same on every rank."""
        if self.size == 1:
            return values
        from composer.utils import dist

        tensor = torch.from_numpy(np.array(values, np.float64)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            from composer.utils import dist

            dist.barrier()


def join_ranks(device: str, sharded: bool = False) -> Ranks:
    """The ranks that Composer's launcher has started, this process being one: its variables tell which.

    Args:
        device: cpu or cuda; of several GPUs, the one of this rank's number becomes the current one.
        sharded: whether FSDP spreads the model over them.
    """
    from composer.utils import dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.initialize_dist("gpu" if device == "cuda" else "cpu", TIMEOUT)
    return Ranks(dist.get_global_rank(), dist.get_world_size(), device, sharded)
