"""The inner optimizer of the federation file, over the decoder's parameters. Child processes only."""

from typing import Any

import torch
from torch import nn

from photon_core.model.shapes import is_hidden_matrix
from photon_core.training.optimizer.muon import Muon
from schemas.sections.local import Optimizer


def make_optimizer(decoder: nn.Module, section: Optimizer) -> torch.optim.Optimizer:
    """AdamW over all parameters, or Muon over the hidden matrices with AdamW over the rest."""
    adamw: dict[str, Any] = {
        "lr": section.lr,
        "betas": section.betas,
        "eps": section.eps,
        "weight_decay": section.weight_decay,
        "fused": True,
    }
    if section.name == "adamw":
        return torch.optim.AdamW(decoder.parameters(), **adamw)
    named = list(decoder.named_parameters())
    return Muon(
        [(value, 3 if name.endswith("Wqkv.weight") else 1) for name, value in named if is_hidden_matrix(name)],
        [value for name, value in named if not is_hidden_matrix(name)],
        lr=section.matrix_lr,
        momentum=section.momentum,
        adamw=adamw,
    )


def peak_rates(section: Optimizer) -> list[float]:
    """The maximum learning rate of each of the optimizer's parameter groups; all follow one schedule."""
    return [section.lr] if section.name == "adamw" else [section.matrix_lr, section.lr]


def parameter_names(decoder: nn.Module, section: Optimizer) -> list[str]:
    """The parameters in the order in which the optimizer's state numbers them."""
    names = [name for name, _ in decoder.named_parameters()]
    if section.name == "adamw":
        return names
    return [name for name in names if is_hidden_matrix(name)] + [n for n in names if not is_hidden_matrix(n)]
