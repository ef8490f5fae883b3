"""The decoder and its optimizer during training: whole on this device, or sharded over the ranks by FSDP.

The results of training (the update, checkpoints, the private state) are always whole, on the first rank, with the
same names as without FSDP. So no other code depends on the parallelism, and training can resume with another one.
Child processes only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
)

from photon_core.model.decoder import PhotonModel
from photon_core.training.parallel.ranks import Ranks

State = dict[int, dict[str, Tensor]]


def parallelism(ranks: Ranks) -> dict[str, Any] | None:
    """The parallelism setting of Composer's Trainer: None, or FSDP.

    With FSDP every rank has a shard of parameters, gradients and optimizer state (ZeRO's third stage). They are
    gathered block by block (see Decoder.fsdp_wrap_fn). Gradients are summed, and parameters are kept, in float32
    at any precision.
    """
    if not ranks.sharded:
        return None
    return {
        "fsdp": {
            "sharding_strategy": "FULL_SHARD",
            "mixed_precision": "DEFAULT",
            "state_dict_type": "full",
            "use_orig_params": True,  # the optimizer keeps the parameters' names and groups
            "sync_module_states": False,  # every rank has read the same files
        }
    }


class TrainState:
    """A model and its optimizer during training by Composer's Trainer.

    Args:
        model: model to train.
        optimizer: optimizer of the model's parameters.
        names: parameter names, in the order in which the optimizer's state numbers them.
        ranks: processes that share the work.
    """

    def __init__(
        self, model: PhotonModel, optimizer: torch.optim.Optimizer, names: list[str], ranks: Ranks
    ) -> None:
        self.model, self.optimizer, self.names, self.ranks = model, optimizer, names, ranks

    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name; empty on every rank but the first. With FSDP all ranks must call it."""
        decoder: nn.Module = self.model.decoder
        if not self.ranks.sharded:
            return decoder.state_dict()
        with self._whole(decoder, first_only=True):
            return decoder.state_dict()

    def moments(self) -> State:
        """The whole optimizer state by parameter number; empty on every rank but the first, as `parameters`."""
        if not self.ranks.sharded:
            state: State = self.optimizer.state_dict()["state"]
            return state
        with self._whole(self.model.decoder, first_only=True):
            whole = FullyShardedDataParallel.optim_state_dict(self.model.decoder, self.optimizer)
        by_name = whole["state"] if self.ranks.first else {}
        return {number: by_name[name] for number, name in enumerate(self.names) if name in by_name}

    def load(self, state: State) -> None:
        """Load a whole optimizer state, the same on every rank."""
        groups = self.optimizer.state_dict()["param_groups"]  # from the federation file, not from the old state
        if not self.ranks.sharded:
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            return
        named = {
            "state": {name: dict(state[number]) for number, name in enumerate(self.names)},
            "param_groups": [{**group, "params": self.names} for group in groups],
        }
        with self._whole(self.model.decoder, first_only=False):
            part = FullyShardedDataParallel.optim_state_dict_to_load(self.model.decoder, self.optimizer, named)
        self.optimizer.load_state_dict(part)

    def _whole(self, decoder: nn.Module, first_only: bool) -> Any:
        off = self.ranks.device == "cuda"
        return FullyShardedDataParallel.state_dict_type(
            decoder,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=off, rank0_only=first_only),
            FullOptimStateDictConfig(offload_to_cpu=off, rank0_only=first_only),
        )
