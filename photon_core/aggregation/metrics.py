"""A round's metrics: means over the sites, weighted as their objectives are, and over their held-out text."""

from collections.abc import Mapping

from photon_core.aggregation.claims import bounded, stream_names
from photon_core.evidence.metrics import PLAIN, How, find, perplexity, reported
from schemas.federation import Federation
from schemas.manifests import UpdateManifest

LIMIT = 1e15  # of a number that a site tells; beyond it a mean might not be finite
Scores = Mapping[str, Mapping[str, float]]


def aggregate_metrics(
    federation: Federation,
    weights: Mapping[str, float],
    updates: Mapping[str, UpdateManifest],
    evaluations: Scores,
) -> dict[str, float]:
    """Metrics of one round.

    Args:
        federation: whose streams are the domains.
        weights: of the sites' updates; they sum to 1.
        updates: what the sites said of their local training.
        evaluations: every site's scores of the new global model on its held-out text, as `claims.believed`.

    Returns:
        what the register combines over the sites, each metric over those that report it; loss and perplexity of
        the global model over all sites that have evaluated it; loss_before and perplexity_before of each site's
        own model on its own held-out text, and beside them loss_after and perplexity_after of the global model
        over the same sites, those that have both; and all of it by domain, the streams of one name at all sites
        together, where there are several (loss/<stream>, ...).
    """
    metrics: dict[str, float] = {}
    said = {
        site: {
            name: bounded(federation, find(name, "training"), max(-LIMIT, min(value, LIMIT)))
            for name, value in update.metrics.items()
        }
        for site, update in updates.items()
    }
    for metric in reported("training"):
        told = {site: values[metric.head] for site, values in said.items() if metric.head in values}
        if (value := _over_sites(metric.sites, told, weights)) is not None:
            metrics[metric.head] = value
    own = {site: _own(values) for site, values in said.items()}
    scored = [site for site, values in own.items() if "loss" in values and "tokens" in values]
    both = [site for site in scored if site in evaluations]
    before, after = ({site: scores[site] for site in both} for scores in (own, evaluations))
    streams = stream_names(federation)
    domains = {name for names in streams.values() for name in names}
    for when, scores in ("_before", before), ("_after", after), ("", evaluations):
        _add_loss(metrics, f"loss{when}", f"perplexity{when}", scores, "loss", "tokens")
        by_domain = {site: _by_domain(streams.get(site, []), values) for site, values in scores.items()}
        for name in sorted(domains) if len(domains) > 1 else ():
            names = f"loss{when}/{name}", f"perplexity{when}/{name}", by_domain, f"loss/{name}", f"tokens/{name}"
            _add_loss(metrics, *names)
    return metrics


def _over_sites(how: How, told: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """One value of several sites' values; None if no site reports it, or if it is not combined."""
    if how == "weights" and (total := sum(weights[site] for site in told)):
        return sum(weights[site] * value for site, value in told.items()) / total
    return PLAIN[how](list(told.values())) if how in PLAIN and told else None


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a site said of its own model, as if it were an evaluation."""
    valid = "valid_"
    return {name[len(valid) :]: max(0.0, value) for name, value in metrics.items() if name.startswith(valid)}


def _by_domain(streams: list[str], scores: Mapping[str, float]) -> Mapping[str, float]:
    """A site with one stream has one domain, and does not say so."""
    if len(streams) == 1:
        split = [metric.head for metric in reported("evaluation") if metric.parts]
        return {f"{name}/{streams[0]}": scores[name] for name in split if name in scores}
    return scores


def _add_loss(
    metrics: dict[str, float], loss: str, exponential: str, scores: Scores, score: str, tokens: str
) -> None:
    """The mean of a score over the sites that have it, weighted by its tokens, and its exponential."""
    told = [site for site in scores.values() if score in site and tokens in site]
    if total := sum(site[tokens] for site in told):
        metrics[loss] = sum(site[score] * site[tokens] for site in told) / total
        metrics[exponential] = perplexity(metrics[loss])
