"""Measurements of training beside its loss: norms of activations, and the loss of each of a site's streams."""

import bisect
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor


class ActivationNorm:
    """Sum over tokens of the Euclidean norm of the residual stream after the last block."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, norms: Tensor, tokens: int) -> None:
        """Add the sum of the norms of `tokens` tokens."""
        self._sum = norms if self._sum is None else self._sum + norms
        self._tokens += tokens

    def take(self) -> tuple[float, int]:
        """Sum of the norms since the last call, and number of tokens."""
        taken = 0.0 if self._sum is None else float(self._sum), self._tokens
        self._sum, self._tokens = None, 0
        return taken


class StreamLosses:
    """Sums of the samples' losses by stream.

    Args:
        names: names of the streams.
        counts: number of training samples of each; sample numbers run through the streams in this order.
        sums: running sums, name -> [loss, samples]; those of an interrupted process that this one continues.
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int], sums: dict[str, list[float]]) -> None:
        self._names = list(names)
        self._starts = list(accumulate(counts, initial=0))[:-1]
        self.sums = sums

    def add(self, numbers: Sequence[int], losses: Sequence[float]) -> None:
        """Add a batch: the samples' numbers, and their mean losses in nats a token."""
        for number, loss in zip(numbers, losses, strict=True):
            entry = self.sums.setdefault(self._names[bisect.bisect_right(self._starts, number) - 1], [0.0, 0.0])
            entry[0] += loss
            entry[1] += 1
