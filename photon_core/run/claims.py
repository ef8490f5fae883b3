"""What a site says of itself, held to what can be known of it: by the federation file, the vocabulary, the others.

A number beyond its bound counts as the bound. Nothing that is honest reaches one, but the loss of a model that has
diverged, which the guard still sees.
"""

from collections.abc import Mapping
from math import ceil, exp, log
from statistics import median
from typing import NamedTuple

from photon_core.hardware.parallelism import choose_infra
from schemas.federation import Federation
from schemas.manifests import UpdateManifest

LOSS_FACTOR = 3.0  # a fresh model's loss is 1.1 to 1.3 of the uniform one; what is beyond 3 has diverged
FEDNOVA_FACTOR = 4.0  # of its steps in the file that a site with a time limit may say it has not made

Scores = Mapping[str, Mapping[str, float]]


class Work(NamedTuple):
    """Tokens and local steps of a round."""

    tokens: int
    steps: int


# More than any site trains in a round: more tokens would drown the others' weights, and the largest count of steps
# moves everyone's learning-rate schedule.
ANY_WORK = Work(tokens=10**15, steps=10**9)


def token_limit(federation: Federation, site: str) -> int:
    """Most tokens that a site can have trained in a round: each of its nodes that train apart makes all steps."""
    nodes = choose_infra(federation, site).nodes
    return nodes * federation.site_steps(site) * federation.local.batch_size * federation.model.max_seq_len


def most_work(federation: Federation) -> Work:
    """Most that any site can have trained in a round: the largest one's tokens."""
    tokens = max(token_limit(federation, site.name) for site in federation.sites)
    return Work(tokens, federation.local.steps)


def largest_loss(federation: Federation) -> float:
    """Nats a token: LOSS_FACTOR times the loss of whoever finds all tokens of the vocabulary alike."""
    return LOSS_FACTOR * log(federation.model.vocab_size)


def most_evaluated(federation: Federation) -> int:
    """Most tokens that a site predicts in an evaluation: all but the first of each sequence."""
    return federation.data.evaluation_sequences * (federation.model.max_seq_len - 1)


def believed(federation: Federation, evaluations: Scores) -> dict[str, dict[str, float]]:
    """Sites' scores of a model, each within its bound; of streams only those that the file gives the site."""
    return {site: _scores(federation, site, scores) for site, scores in evaluations.items()}


def excessive(federation: Federation, evaluations: Scores) -> dict[str, list[str]]:
    """site -> a sentence, where it claims to have evaluated more tokens than it can have."""
    most = most_evaluated(federation)
    return {
        site: [f"it claims {scores['tokens']:.15g} evaluated tokens; at most {most} are possible, and count"]
        for site, scores in evaluations.items()
        if scores["tokens"] > most
    }


def bounded(federation: Federation, name: str, value: float) -> float:
    """A metric that a site tells of its training: its losses and its counts of held-out tokens have bounds."""
    kind = name.partition("/")[0].removeprefix("valid_")
    if kind in ("loss", "train_loss", "first_loss", "last_loss"):
        return max(0.0, min(value, largest_loss(federation)))
    if kind == "tokens":
        return max(0.0, min(value, float(most_evaluated(federation))))
    return value


def _scores(federation: Federation, site: str, scores: Mapping[str, float]) -> dict[str, float]:
    names = [stream.name for known in federation.sites if known.name == site for stream in known.streams]
    found = {name: bounded(federation, name, scores[name]) for name in ("loss", "tokens")}
    found["perplexity"] = exp(found["loss"])
    streams = [name for name in names if f"loss/{name}" in scores and f"tokens/{name}" in scores]
    if sum(scores[f"tokens/{name}"] for name in streams) <= found["tokens"]:
        told = [f"{kind}/{name}" for name in streams for kind in ("loss", "tokens")]
        found |= {name: bounded(federation, name, scores[name]) for name in told}
    return found


def least_steps(federation: Federation, update: UpdateManifest) -> int:
    """Least local steps that an update counts as where FedNova divides by them.

    A site without a time limit makes those of the file. One with a limit may make fewer, but no more than a
    FEDNOVA_FACTOR-th of them counts as so few: a lie multiplies its change by no more.
    """
    asked = federation.site_steps(update.site)
    return asked if federation.site(update.site).time_limit is None else ceil(asked / FEDNOVA_FACTOR)


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
