"""What is measured of a training beside its loss: norms, and the loss of each of a site's streams."""

import bisect
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor


class ActivationNorm:
    """Sum over tokens of the Euclidean norm of the residual stream behind the last block."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, norms: Tensor, tokens: int) -> None:
        """Take in the sum of so many tokens' norms."""
        self._sum = norms if self._sum is None else self._sum + norms
        self._tokens += tokens

    def take(self) -> tuple[float, int]:
        """Sum of the norms since the last call, and their number."""
        taken = 0.0 if self._sum is None else float(self._sum), self._tokens
        self._sum, self._tokens = None, 0
        return taken


class StreamLosses:
    """Sums of the samples' losses by stream.

    Args:
        names: the streams.
        counts: training samples of each; sample numbers run through them in this order.
        sums: as `sums` of the process that this one goes on for: name -> [loss, samples].
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int], sums: dict[str, list[float]]) -> None:
        self._names = list(names)
        self._starts = list(accumulate(counts, initial=0))[:-1]
        self.sums = sums

    def add(self, numbers: Sequence[int], losses: Sequence[float]) -> None:
        """Take in a batch: the samples' numbers, and their mean losses in nats a token."""
        for number, loss in zip(numbers, losses, strict=True):
            entry = self.sums.setdefault(self._names[bisect.bisect_right(self._starts, number) - 1], [0.0, 0.0])
            entry[0] += loss
            entry[1] += 1
