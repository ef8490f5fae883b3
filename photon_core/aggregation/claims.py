"""Bounds on the measurements that a site reports, from the federation file and the vocabulary.

A number beyond its bound counts as the bound. No honest number reaches its bound, except the loss of a model that
has diverged, and the guard still sees that one.
"""

from collections.abc import Mapping
from math import log

from photon_core.evidence.events import Fact, Kind
from photon_core.evidence.metrics import Metric, find, perplexity, reported
from photon_core.run.members import evaluated_tokens, members
from schemas.federation import Federation

LOSS_FACTOR = 3.0  # a new model's loss is 1.1 to 1.3 times the uniform loss; beyond 3, it has diverged

Scores = Mapping[str, Mapping[str, float]]


def largest_loss(federation: Federation) -> float:
    """Nats a token: LOSS_FACTOR times the loss of a uniform distribution over the vocabulary."""
    return LOSS_FACTOR * log(federation.model.vocab_size)


def believed(federation: Federation, evaluations: Scores) -> dict[str, dict[str, float]]:
    """The sites' scores of a model, each within its bound. A site's unknown streams are ignored."""
    streams, most = stream_names(federation), _most_evaluated(federation, evaluations)
    return {
        site: _scores(federation, streams.get(site, []), scores, most[site])
        for site, scores in evaluations.items()
    }


def stream_names(federation: Federation) -> dict[str, list[str]]:
    """Site -> its streams' names."""
    return {site.name: [stream.name for stream in site.streams] for site in federation.sites}


def excessive(federation: Federation, evaluations: Scores) -> dict[str, list[str]]:
    """site -> a sentence, for each site that claims more evaluated tokens than are possible."""
    most = _most_evaluated(federation, evaluations)
    return {
        site: [str(Fact(Kind.CLAIM_BOUNDED, {"tokens": scores["tokens"], "most": most[site]}))]
        for site, scores in evaluations.items()
        if scores["tokens"] > most[site]
    }


def _most_evaluated(federation: Federation, evaluations: Scores) -> dict[str, int]:
    """Most tokens in an evaluation of each member."""
    known = {one.name: one.evaluated() for one in members(federation) if one.name in evaluations}
    return {name: known.get(name, evaluated_tokens(federation)) for name in evaluations}


def bounded(federation: Federation, metric: Metric | None, value: float, tokens: int | None = None) -> float:
    """A value that a member reports, within the metric's bound; unchanged if the metric has none or is unknown.

    Args:
        federation: file.
        metric: metric of the value.
        value: reported value.
        tokens: most tokens in an evaluation of the member; default: those of a site.
    """
    if metric is None or not metric.bound:
        return value
    most = evaluated_tokens(federation) if tokens is None else tokens
    return max(0.0, min(value, largest_loss(federation) if metric.bound == "loss" else float(most)))


def _scores(
    federation: Federation, names: list[str], scores: Mapping[str, float], tokens: int
) -> dict[str, float]:
    """The scores of a member with streams of these names, of at most `tokens` tokens."""
    metrics = reported("evaluation")
    kept = {m.head: bounded(federation, m, scores[m.head], tokens) for m in metrics if m.head in scores}
    kept["perplexity"] = perplexity(kept["loss"])
    split = [metric.head for metric in metrics if metric.parts]
    streams = [name for name in names if all(f"{head}/{name}" in scores for head in split)]
    if sum(scores[f"tokens/{name}"] for name in streams) <= kept["tokens"]:
        by_stream = [f"{head}/{name}" for name in streams for head in split]
        kept |= {name: bounded(federation, find(name, "evaluation"), scores[name]) for name in by_stream}
    return kept
