"""The sites' weights: by tokens, alike, or FedNova's; and what bounded norms leave of them."""

import math
from collections.abc import Mapping

from photon_core.aggregation.means import bounds, token_weights
from photon_core.errors import UpdateRejected
from schemas.manifests import UpdateManifest
from schemas.sections.server import ALIKE, Server

TOLERANCE = 1e-3  # of a norm that a site claims: it sums in another order


def fednova_factor(steps: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """Normalised averaging (FedNova; Wang et al. 2020, arXiv 2007.07481), all sites' objectives counting alike.

    theta' = theta - tau sum_k p (theta - theta_k) / a_k with p = 1/K, a_k the site's local steps (the paper's for
    plain SGD; it stands for other inner optimizers too) and tau = sum_k p a_k.

    Returns:
        each site's share of the mean change, which sum to 1, and the factor to multiply that by.
    """
    tau = sum(steps.values()) / len(steps)
    shares = {site: tau / count / len(steps) for site, count in sorted(steps.items())}
    factor = math.fsum(shares.values())
    return {site: share / factor for site, share in shares.items()}, factor


class Shares:
    """The sites' shares in one round's mean.

    Args:
        server: its weights and mean.
        updates: what is averaged, in the order of the sites' names.

    Attributes:
        weights: of the sites' objectives, which sum to 1: what their moments and metrics are averaged with.
        relative: each site's share of the parameters' mean, which sum to 1; the weights, but for FedNova.
        shares: what each one's parameters are multiplied by; theta gets what is left to 1.
        plain: whether nothing is left, the shares being `relative`.

    Raises:
        UpdateRejected: an update does not say what the mean needs.
    """

    def __init__(self, server: Server, updates: Mapping[str, UpdateManifest]) -> None:
        self._claimed = _norms(updates) if server.mean == "norm_bounded" else {}
        if server.weights == "tokens" and server.mean not in ALIKE:
            self.weights = token_weights({site: update.tokens for site, update in updates.items()})
        else:
            self.weights = {site: 1 / len(updates) for site in updates}
        self.relative, factor = self.weights, 1.0
        if server.weights == "fednova":
            self.relative, factor = fednova_factor({site: update.steps for site, update in updates.items()})
        kept = bounds(self._claimed, server.norm_bound) if self._claimed else dict.fromkeys(updates, 1.0)
        self.shares = {site: factor * share * kept[site] for site, share in self.relative.items()}
        self.plain = factor == 1.0 and all(bound == 1.0 for bound in kept.values())

    def verify(self, norms: Mapping[str, float]) -> None:
        """Compare the norms that the sites claimed with those that were found so far (delta_norm/<site>).

        Raises:
            UpdateRejected: a site claimed less, and so would have escaped its bound.
        """
        for site, claimed in self._claimed.items():
            found = norms.get(f"delta_norm/{site}", 0.0)
            if found > claimed * (1 + TOLERANCE):
                reason = f"it claims a change of norm {claimed:.6g}, but brings one of {found:.6g}"
                raise UpdateRejected(site, reason)


def _norms(updates: Mapping[str, UpdateManifest]) -> dict[str, float]:
    for site, update in updates.items():
        if update.metrics.get("delta_norm", -1.0) < 0:
            raise UpdateRejected(site, "its metrics have no delta_norm, which server.mean norm_bounded needs")
    return {site: update.metrics["delta_norm"] for site, update in updates.items()}
