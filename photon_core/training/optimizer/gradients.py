"""The processing of a step's gradients before the optimizer's step: FedProx, norm, clipping."""

from collections.abc import Sequence

import torch
from composer import Callback, Logger, State
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from typing_extensions import override


class Gradients(Callback):
    """Adds the proximal term's gradient, then measures the norm and clips it like Composer's own callback.

    FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", eq. 2) minimises
    F_k(w) + mu/2 |w - theta|^2: the gradient gains mu (w - theta). The reported loss stays F_k.

    Args:
        clip_norm: maximum Euclidean norm of all gradients together; None for no clipping.
        proximal: mu of FedProx; None without the term.
        theta: initial parameters of the round, in the order of the model's parameters; used only with `proximal`.
    """

    def __init__(self, clip_norm: float | None, proximal: float | None, theta: Sequence[Tensor]) -> None:
        self.clip_norm = clip_norm
        self.proximal = proximal
        self.theta = theta
        self.norm = torch.zeros(())  # of the last step, before clipping

    @override
    def after_train_batch(self, state: State, logger: Logger) -> None:
        model = state.model
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        if self.proximal is not None:
            for parameter, start in zip(model.parameters(), self.theta, strict=True):
                assert parameter.grad is not None
                parameter.grad.add_(parameter.detach() - start, alpha=self.proximal)
        sharded = next((m for m in model.modules() if isinstance(m, FullyShardedDataParallel)), None)
        if sharded is not None:
            self.norm = sharded.clip_grad_norm_(float("inf") if self.clip_norm is None else self.clip_norm)
        elif self.clip_norm is not None:
            self.norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        else:
            self.norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
