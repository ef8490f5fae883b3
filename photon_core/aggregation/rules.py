"""Rules: how a pass combines the members' contributions to a tensor. One rule may serve all tensors.

A new rule is a subclass of `Rule` here, with its two methods. The caller that chooses it puts it into the `Rules`
of the pass.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from typing_extensions import override

from photon_core.aggregation.means import Float32, median, trimmed_mean, weighted_mean
from photon_core.aggregation.noise import Noise
from photon_core.aggregation.weights import Shares
from schemas.sections.server import Server

EXACT = 1e-9  # a sum of shares within this of 1 counts as 1


class Rule(Protocol):
    """A kind of mean, element by element. No bit of it depends on where a block of a tensor ends."""

    def __call__(self, rows: Float32, out: Float32, scratch: Float32) -> Float32:
        """The mean of one block.

        Args:
            rows: theta, then the members' parameters in the order of their names; a row each, read only.
            out: result array of a row's shape.
            scratch: work array of the rows' shape.

        Returns:
            `out`.
        """
        ...

    def record(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON."""
        ...


@dataclass(frozen=True)
class WeightedMean(Rule):
    """The sum of each row times its share.

    Args:
        shares: shares of the members, in the order of their names.
        theta: share of theta, the remainder to 1; None if there is no remainder.
    """

    shares: tuple[float, ...]
    theta: float | None = None

    @override
    def __call__(self, rows: Float32, out: Float32, scratch: Float32) -> Float32:
        if self.theta is None:
            return weighted_mean(rows[1:], self.shares, out, scratch[1:])
        return weighted_mean(rows, (self.theta, *self.shares), out, scratch)

    @override
    def record(self) -> dict[str, Any]:
        return {"rule": "mean", **asdict(self)}

    @classmethod
    def fixed(cls, shares: Mapping[str, float]) -> "WeightedMean":
        """The mean with fixed shares by name; theta gets the remainder to 1."""
        rest = 1 - math.fsum(shares.values())
        return cls(tuple(shares[name] for name in sorted(shares)), None if abs(rest) < EXACT else rest)


@dataclass(frozen=True)
class Median(Rule):
    """The median over the members, element by element; all members count equally."""

    @override
    def __call__(self, rows: Float32, out: Float32, scratch: Float32) -> Float32:
        return median(rows[1:], out)

    @override
    def record(self) -> dict[str, Any]:
        return {"rule": "median"}


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """The mean over the members without the least and the largest share `trim`, element by element; all members
    count equally."""

    trim: float

    @override
    def __call__(self, rows: Float32, out: Float32, scratch: Float32) -> Float32:
        return trimmed_mean(rows[1:], self.trim, out)

    @override
    def record(self) -> dict[str, Any]:
        return {"rule": "trimmed", **asdict(self)}


@dataclass(frozen=True)
class Rules:
    """The rule of every tensor of a model.

    Args:
        rest: rule of the tensors that are not in `named`.
        named: rules by tensor.
        noise: noise on the means, if they get any.
    """

    rest: Rule
    named: Mapping[str, Rule] = field(default_factory=dict)
    noise: Noise | None = None

    def of(self, tensor: str) -> Rule:
        return self.named.get(tensor, self.rest)

    def record(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON."""
        named = {tensor: self.named[tensor].record() for tensor in sorted(self.named)}
        noise = {} if self.noise is None else {"noise": self.noise.record()}
        return {"rest": self.rest.record(), "named": named, **noise}


def model_rule(server: Server, shares: Shares) -> Rule:
    """The file's rule for the model's parameters."""
    if (robust := _robust(server)) is not None:
        return robust
    values = tuple(shares.shares.values())
    return WeightedMean(values, None if shares.plain else 1 - math.fsum(values))


def moments_rule(server: Server, weights: Mapping[str, float]) -> Rule:
    """The file's rule for the inner optimizer's moments, which are averaged like the sites' objectives."""
    return _robust(server) or WeightedMean(tuple(weights[site] for site in sorted(weights)))


def _robust(server: Server) -> Rule | None:
    """The robust rule of the file, if it has one. It serves the moments, too: a bad site that it keeps out of the
    model must not reach it through the moments."""
    if server.mean == "median":
        return Median()
    return TrimmedMean(server.trim) if server.mean == "trimmed" else None
