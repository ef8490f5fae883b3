"""Ditto (Li et al. 2021, arXiv 2012.04221): a personal model is pulled towards a global one.

The personal model v of a site has the loss F(v) + lambda/2 |v - w|^2, where w is the global model of the round.
Its gradient is that of F plus lambda (v - w). The optimizer is the caller's: the paper leaves it open.
"""

from typing import Any

from composer import Callback, Logger, State
from safetensors.torch import load_file
from typing_extensions import override


class Pull(Callback):
    """Adds lambda (v - w) to each gradient, before it is clipped.

    Args:
        decoder: personal model.
        strength: lambda.
        every: steps of a round.
        models: files of w for each round.
    """

    def __init__(self, decoder: Any, strength: float, every: int, models: list[list[str]]) -> None:
        self.decoder, self.strength, self.every, self.models = decoder, strength, every, models
        self.w: dict[str, Any] = {}

    @override
    def after_backward(self, state: State, logger: Logger) -> None:
        round_, step = divmod(state.timestamp.batch.value, self.every)
        if step == 0:
            self.w = {name: tensor for file in self.models[round_] for name, tensor in load_file(file).items()}
        for name, v in self.decoder.named_parameters():
            v.grad.add_(v.detach() - self.w[name], alpha=self.strength)
