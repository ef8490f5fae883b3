"""A round's metrics: means over the sites, weighted like their objectives, and over their held-out text."""

from collections.abc import Mapping

from photon_core.aggregation.claims import bounded, stream_names
from photon_core.evidence.metrics import PLAIN, How, find, perplexity, reported
from schemas.federation import Federation
from schemas.manifests import UpdateManifest

LIMIT = 1e15  # of a number that a site reports; beyond it a mean might not be finite
Scores = Mapping[str, Mapping[str, float]]


def aggregate_metrics(
    federation: Federation,
    weights: Mapping[str, float],
    updates: Mapping[str, UpdateManifest],
    evaluations: Scores,
) -> dict[str, float]:
    """Metrics of one round.

    Args:
        federation: federation file; its streams are the domains.
        weights: weights of the sites' updates; they sum to 1.
        updates: updates by site, with the metrics of local training.
        evaluations: scores of the new global model on each site's held-out text, as from `claims.believed`.

    Returns:
        metrics by name:
        - each metric that the register combines over the sites, over the sites that report it;
        - loss and perplexity of the global model, over all sites that have evaluated it;
        - loss_before and perplexity_before of each site's own model on its own held-out text, and loss_after and
          perplexity_after of the global model, over the sites that have both;
        - the same losses by domain (loss/<stream>, ...) if there are several. A domain is the streams of one name
          at all sites.
    """
    metrics: dict[str, float] = {}
    trained = {
        site: {
            name: bounded(federation, find(name, "training"), max(-LIMIT, min(value, LIMIT)))
            for name, value in update.metrics.items()
        }
        for site, update in updates.items()
    }
    for metric in reported("training"):
        values = {site: of_site[metric.head] for site, of_site in trained.items() if metric.head in of_site}
        if (value := _over_sites(metric.sites, values, weights)) is not None:
            metrics[metric.head] = value
    own = {site: _own(values) for site, values in trained.items()}
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


def _over_sites(how: How, values: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The sites' values as one; None if no site reports the metric, or if it is not combined."""
    if how == "weights" and (total := sum(weights[site] for site in values)):
        return sum(weights[site] * value for site, value in values.items()) / total
    return PLAIN[how](list(values.values())) if how in PLAIN and values else None


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores that a site reports of the model it trained, in the form of an evaluation."""
    valid = "valid_"
    return {name[len(valid) :]: max(0.0, value) for name, value in metrics.items() if name.startswith(valid)}


def _by_domain(streams: list[str], scores: Mapping[str, float]) -> Mapping[str, float]:
    """The scores by domain. A site with one stream has one domain, and reports no scores by stream."""
    if len(streams) == 1:
        split = [metric.head for metric in reported("evaluation") if metric.parts]
        return {f"{name}/{streams[0]}": scores[name] for name in split if name in scores}
    return scores


def _add_loss(
    metrics: dict[str, float], loss: str, exponential: str, scores: Scores, score: str, tokens: str
) -> None:
    """Add the mean of a score over the sites that have it, weighted by tokens, and its exponential."""
    scored = [site for site in scores.values() if score in site and tokens in site]
    if total := sum(site[tokens] for site in scored):
        metrics[loss] = sum(site[score] * site[tokens] for site in scored) / total
        metrics[exponential] = perplexity(metrics[loss])
