"""Whether a round has gone wrong at the server: its norms, or its loss, are out of line with the rounds before.

In the first round, with the model that it starts from: its norm is in round 0's metrics, and its loss is what the
sites' training found in its first step. What a step is to that has no such measure.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from photon_core.errors import ModelDiverged
from photon_core.round_metrics import LARGEST_LOSS, Scores
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.server import Guard

RUNNING_ROUNDS = 5  # whose median is the running value
WATCHED = {"step_norm": "the server's step", "model_norm": "the model's norm"}


def running(past: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Median of a metric over the last rounds that have it; None before the first."""
    values = [metrics[name] for metrics in past if name in metrics][-RUNNING_ROUNDS:]
    return median(values) if values else None


def norm_trouble(norms: Mapping[str, float], past: Sequence[Mapping[str, float]], guard: Guard) -> str:
    """What is wrong with a new model's norms, or nothing.

    Args:
        norms: the candidate's.
        past: metrics of the committed rounds, oldest first.
        guard: the settings.
    """
    for name, words in WATCHED.items():
        usual = running(past, name)
        if guard.norm_factor and usual and norms[name] > guard.norm_factor * usual:
            return f"{words} is {norms[name]:.4g}, {norms[name] / usual:.3g} times its running value {usual:.4g}"
    return ""


def first_losses(updates: Mapping[str, UpdateManifest]) -> Scores:
    """site -> its loss of the model that it started from, by its first local step, on text that it trains on.

    What a round's validation loss is compared with while no round before it has been evaluated.
    """
    told = {site: update.metrics.get("first_loss") for site, update in updates.items()}
    return {site: {"loss": max(0.0, min(loss, LARGEST_LOSS))} for site, loss in told.items() if loss is not None}


def loss_trouble(evaluations: Scores, past: Sequence[Scores], guard: Guard) -> str:
    """What is wrong with a new model's validation loss (nats, mean over the sites' tokens), or nothing.

    Only of sites that have been evaluated before, each against its own running value: whoever joins, pauses or
    comes back moves the mean of all.

    Args:
        evaluations: site -> its scores of the candidate.
        past: the same of the committed rounds, oldest first.
        guard: the settings.
    """
    tokens, loss, usual = 0.0, 0.0, 0.0
    for site, scores in evaluations.items():
        before = running([found[site] for found in past if site in found], "loss")
        if before is not None:
            tokens += scores["tokens"]
            loss += scores["tokens"] * scores["loss"]
            usual += scores["tokens"] * before
    if guard.loss_jump is None or not tokens or loss <= usual + guard.loss_jump * tokens:
        return ""
    now, usually = loss / tokens, usual / tokens
    return f"the validation loss is {now:.4g}, over {guard.loss_jump:g} above its running value {usually:.4g}"


def blown_up(evaluations: Scores, federation: Federation) -> list[str]:
    """The sites at which a new model has no finite loss, if a quorum that could train from it is not left."""
    sites = [site for site, scores in sorted(evaluations.items()) if scores["loss"] >= LARGEST_LOSS]
    return sites if len(federation.active) - len(sites) < federation.quorum else []


def diverged(t: int, sites: Sequence[str], lr: float, lowered: int) -> ModelDiverged:
    """Why round t cannot be committed, blown up at these sites after so many tries, and what to do."""
    tried = f"{lr:g}, lowered {lowered} times" if lowered else f"{lr:g}"
    return ModelDiverged(
        f"round {t} is not committed: its model, with server.lr {tried}, has no finite validation loss at "
        f"{', '.join(sites)}, and too few other sites could train from it. Write a lower server.lr, another "
        "server.optimizer or more server.guard.tries, or pause the sites named, and run again: the updates stay, "
        "and are aggregated again"
    )
