"""Muon for the hidden matrices, AdamW for everything else, as one optimizer. Child processes only.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": Nesterov momentum, then five
Newton-Schulz iterations with the published coefficients bring all singular values near 1. Query, key and value
are orthogonalised independently, as the authors advise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7


def orthogonalise(matrices: Tensor) -> Tensor:
    """U p(S) V^T of each matrix U S V^T, where p brings every singular value of 0.01 to 1 times the norm near 1.

    Args:
        matrices: tensor (number, rows, columns). The authors use bfloat16 on a GPU; any float type works.

    Returns:
        a tensor of the same shape and type.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon and AdamW in two parameter groups, `param_groups[0]` and `[1]`, each with its own `lr`.

    Its state is `momentum` for a parameter of the first group, AdamW's for one of the second. A step of Muon is
    M <- mu M + (1 - mu) G; theta <- (1 - lr decay) theta - lr sqrt(max(1, rows / columns)) O((1 - mu) G + mu M),
    where O is `orthogonalise`.

    Args:
        matrices: parameters of two dimensions for Muon, each with the number of equal blocks of rows that are
            orthogonalised independently (3 for query, key and value in one matrix).
        others: parameters for AdamW.
        lr, momentum: settings of Muon.
        adamw: keyword arguments of torch.optim.AdamW; its weight decay is also Muon's.
    """

    def __init__(
        self,
        matrices: Sequence[tuple[nn.Parameter, int]],
        others: Sequence[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        adamw: dict[str, Any],
    ) -> None:
        self._adamw = torch.optim.AdamW(others, **adamw)
        hidden = {
            "params": [parameter for parameter, _ in matrices],
            "blocks": [blocks for _, blocks in matrices],
            "lr": lr,
            "momentum": momentum,
            "weight_decay": adamw["weight_decay"],
        }
        super().__init__([hidden, self._adamw.param_groups[0]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both optimizers. A parameter without a gradient does not change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        for parameter, blocks in zip(group["params"], group["blocks"], strict=True):
            if parameter.grad is not None:
                self._step(parameter, parameter.grad, blocks, group)
        # load_state_dict replaces these objects, so AdamW's references are renewed at each step
        self._adamw.state, self._adamw.param_groups = self.state, self.param_groups[1:]
        self._adamw.step()
        return loss

    def _step(self, parameter: nn.Parameter, gradient: Tensor, blocks: int, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, mu = state["momentum"], group["momentum"]
        momentum.lerp_(gradient, 1 - mu)
        direction = gradient.lerp(momentum, mu).unflatten(0, (blocks, -1))
        if parameter.is_cuda:
            direction = direction.bfloat16()
        rows, columns = direction.shape[-2:]
        update = orthogonalise(direction).flatten(0, 1).to(parameter.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
