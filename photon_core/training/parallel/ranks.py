"""The processes that train one job together, each on its own device. Child processes only."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

REQUEST = "request.pickle"
REPORTS = "reports"
ANSWER = "answer-{}.pickle"
LEDGER = "shared-memory-{}"

TIMEOUT = 1800.0  # seconds that a rank waits for the others, for instance while they write a checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process's rank among those that train one job.

    Args:
        rank: rank number; 0 keeps the state, writes the update and reports for all.
        size: number of ranks.
        device: cpu or cuda.
        sharded: flag: FSDP shards the model over the ranks; else each rank holds the whole model.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    sharded: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's samples of a global batch. The parts are equal, or the first ones are one sample longer."""
        each, more = divmod(count, self.size)
        low = self.rank * each + min(self.rank, more)
        return slice(low, low + each + (self.rank < more))

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the ranks' values, the same on every rank."""
        if self.size == 1:
            return values
        from composer.utils import dist

        tensor = torch.from_numpy(np.array(values, np.float64)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def wait(self) -> None:
        """Wait until every rank has called it."""
        if self.size > 1:
            from composer.utils import dist

            dist.barrier()


def join_ranks(device: str, sharded: bool = False) -> Ranks:
    """Join the ranks that Composer's launcher has started. The launcher's variables name this process's rank.

    Args:
        device: cpu or cuda; of several GPUs, the one with this rank's number becomes the current one.
        sharded: flag: FSDP shards the model over the ranks.
    """
    from composer.utils import dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.initialize_dist("gpu" if device == "cuda" else "cpu", TIMEOUT)
    return Ranks(dist.get_global_rank(), dist.get_world_size(), device, sharded)
