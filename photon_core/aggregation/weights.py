"""The sites' weights: by tokens, uniform, or FedNova's; and the shares that bounded norms leave of them."""

import math
from collections.abc import Mapping
from statistics import median

from photon_core.aggregation.means import bounds, token_weights
from photon_core.aggregation.noise import noise_of
from photon_core.errors import UpdateRejected
from schemas.manifests import UpdateManifest
from schemas.sections.server import ALIKE, Server

TOLERANCE = 1e-3  # of a norm that a site claims: the site sums in another order


def fednova_factor(steps: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """Normalised averaging (FedNova; Wang et al. 2020, arXiv 2007.07481), with equal weights of the objectives.

    theta' = theta - tau sum_k p (theta - theta_k) / a_k with p = 1/K, a_k the site's local steps (the paper's for
    plain SGD; used for other inner optimizers, too) and tau = sum_k p a_k.

    Returns:
        each site's share of the mean change, which sum to 1, and the factor for the mean change.
    """
    tau = sum(steps.values()) / len(steps)
    shares = {site: tau / count / len(steps) for site, count in sorted(steps.items())}
    factor = math.fsum(shares.values())
    return {site: share / factor for site, share in shares.items()}, factor


def discounted(
    weights: Mapping[str, float], updates: Mapping[str, UpdateManifest], elements: int
) -> dict[str, float]:
    """Weights times signal / (signal + noise), with the sum 1 again.

    Signal and noise are squared norms. Noise is what a member claims that its change contains. The signal of all
    is the median of the members' squared norms without their noise. So a member that is mostly noise has almost
    no weight: Wiener's filter, for members whose changes are equally large (a choice).

    Args:
        weights: weights of the members, which sum to 1.
        updates: their updates.
        elements: parameters of the backbone.

    Raises:
        UpdateRejected: an update lacks the norm of its change.
    """
    noise = {name: elements * noise_of(update) ** 2 for name, update in updates.items()}
    signal = median(max(0.0, norm**2 - noise[name]) for name, norm in _norms(updates).items())
    kept = {
        name: weight * (signal / (signal + noise[name]) if noise[name] else 1.0)
        for name, weight in weights.items()
    }
    total = math.fsum(kept.values())
    return {name: weight / total for name, weight in kept.items()} if total else dict(weights)


class Shares:
    """The sites' shares in one round's mean.

    Args:
        server: server section, with weights and mean.
        updates: updates to average, in the order of the sites' names.
        elements: parameters of the backbone, which discount_noise needs.

    Attributes:
        weights: weights of the sites' objectives, which sum to 1; moments and metrics are averaged with them.
        relative: shares of the parameters' mean, which sum to 1; equal to the weights, except with FedNova.
        shares: multipliers of the sites' parameters; theta gets the remainder to 1.
        plain: flag: the remainder is 0, and the shares are `relative`.

    Raises:
        UpdateRejected: an update lacks a metric that the mean needs.
    """

    def __init__(self, server: Server, updates: Mapping[str, UpdateManifest], elements: int = 0) -> None:
        self._claimed = _norms(updates) if server.mean == "norm_bounded" else {}
        if server.weights == "tokens" and server.mean not in ALIKE:
            self.weights = token_weights({site: update.tokens for site, update in updates.items()})
        else:
            self.weights = {site: 1 / len(updates) for site in updates}
        if server.discount_noise:
            self.weights = discounted(self.weights, updates, elements)
        self.relative, factor = self.weights, 1.0
        if server.weights == "fednova":
            self.relative, factor = fednova_factor({site: update.steps for site, update in updates.items()})
        kept = bounds(self._claimed, server.norm_bound) if self._claimed else dict.fromkeys(updates, 1.0)
        self.shares = {site: factor * share * kept[site] for site, share in self.relative.items()}
        self.plain = factor == 1.0 and all(bound == 1.0 for bound in kept.values())

    def verify(self, norms: Mapping[str, float]) -> None:
        """Compare the norms that the sites claimed with the computed ones (delta_norm/<site>).

        Raises:
            UpdateRejected: a site claimed less, and so would have evaded its bound.
        """
        for site, claimed in self._claimed.items():
            computed = norms.get(f"delta_norm/{site}", 0.0)
            if computed > claimed * (1 + TOLERANCE):
                reason = f"it claims a change of norm {claimed:.6g}, but its change has norm {computed:.6g}"
                raise UpdateRejected(site, reason)


def _norms(updates: Mapping[str, UpdateManifest]) -> dict[str, float]:
    for site, update in updates.items():
        if update.metrics.get("delta_norm", -1.0) < 0:
            raise UpdateRejected(site, "its metrics have no delta_norm, which the server's weights need")
    return {site: update.metrics["delta_norm"] for site, update in updates.items()}
