"""The work and the data that a site says it has, held to what the federation file and the other sites say.

A number beyond its bound counts as the bound, or is refused. Nothing that is honest reaches one.
"""

from collections.abc import Mapping
from math import ceil
from statistics import median
from typing import NamedTuple

from photon_core.hardware.parallelism import choose_infra
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.view import SiteView, view_of

FEDNOVA_FACTOR = 4.0  # of its steps in the file that a site with a time limit may say it has not made


class Work(NamedTuple):
    """Tokens and local steps of a round."""

    tokens: int
    steps: int


# More than any site trains in a round: more tokens would drown the others' weights, and the largest count of steps
# moves everyone's learning-rate schedule.
ANY_WORK = Work(tokens=10**15, steps=10**9)


def token_limit(view: SiteView) -> int:
    """Most tokens that a site can have trained in a round: each of its nodes that train apart makes all steps."""
    nodes = choose_infra(view).nodes
    return nodes * view.steps * view.local.batch_size * view.federation.model.max_seq_len


def most_work(federation: Federation) -> Work:
    """Most that any site can have trained in a round: the largest one's tokens."""
    tokens = max(token_limit(view_of(federation, site.name)) for site in federation.sites)
    return Work(tokens, federation.local.steps)


def least_steps(federation: Federation, update: UpdateManifest) -> int:
    """Least local steps that an update counts as where FedNova divides by them.

    A site without a time limit makes those of the file. One with a limit may make fewer, but no more than a
    FEDNOVA_FACTOR-th of them counts as so few: a lie multiplies its change by no more.
    """
    asked = view_of(federation, update.site).steps
    return asked if view_of(federation, update.site).time_limit is None else ceil(asked / FEDNOVA_FACTOR)


def data_tokens(
    sites: list[str], registered: Mapping[str, int | None], claimed: Mapping[str, float]
) -> dict[str, float]:
    """Tokens that each site counts as where sites are sampled by them; all alike while nobody's are known.

    Args:
        sites: whose.
        registered: what the federation file says, which counts.
        claimed: what the sites say; no more of it counts than the median of the others' numbers.
    """
    known = {site: float(registered.get(site) or claimed.get(site, 0.0)) for site in sites}
    known = {site: tokens for site, tokens in known.items() if tokens > 0}
    found = {}
    for site, tokens in known.items():
        others = [known[other] for other in known if other != site]
        found[site] = tokens if registered.get(site) or not others else min(tokens, median(others))
    usual = median(found.values()) if found else 1.0
    return {site: found.get(site, usual) for site in sites}
