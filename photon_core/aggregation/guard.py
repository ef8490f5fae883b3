"""Whether a round has gone wrong at the server: its norms, or its loss, are out of line with the rounds before.

In the first round, with the model that it starts from: its norm is in round 0's metrics, and its loss is what the
sites' training found in its first step. What a step is to that has no such measure.

The sites' own numbers are judged by their median, so that one site alone neither blinds the guard nor sets it off.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from photon_core.aggregation.metrics import Scores
from photon_core.errors import ModelDiverged
from photon_core.evidence.events import Fact, Kind
from photon_core.evidence.metrics import LARGEST_LOSS, reported
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.sections.server import Guard

RUNNING_ROUNDS = 5  # whose median is the running value
FOLLOWS = {Kind.LR_LOWERED, Kind.UPDATES_DROPPED, Kind.TRIES_ENDED}
SITES = 3  # at least, for a median that one of them does not move


def running(past: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Median of a metric over the last rounds that have it; None before the first."""
    values = [metrics[name] for metrics in past if name in metrics][-RUNNING_ROUNDS:]
    return median(values) if values else None


def norm_trouble(norms: Mapping[str, float], past: Sequence[Mapping[str, float]], guard: Guard) -> Fact | None:
    """What is wrong with a new model's norms, or nothing.

    Args:
        norms: the candidate's.
        past: metrics of the committed rounds, oldest first.
        guard: the settings.
    """
    for metric in reported("coordinator"):
        usual = running(past, metric.name) if metric.watched else None
        if guard.norm_factor and usual and (norm := norms[metric.name]) > guard.norm_factor * usual:
            facts = {"metric": metric.name, "norm": norm, "times": norm / usual, "usual": usual}
            return Fact(Kind.NORM_HIGH, facts)
    return None


def first_losses(updates: Mapping[str, UpdateManifest]) -> Scores:
    """site -> its loss of the model that it started from, by its first local step, on text that it trains on.

    What a round's validation loss is compared with while no round before it has been evaluated.
    """
    told = {site: update.metrics.get("first_loss") for site, update in updates.items()}
    return {site: {"loss": max(0.0, min(loss, LARGEST_LOSS))} for site, loss in told.items() if loss is not None}


def jumps(evaluations: Scores, past: Sequence[Scores], bound: float) -> dict[str, float]:
    """site -> how far its validation loss is above its own running value (nats).

    Only of sites that have been evaluated before: whoever joins, pauses or comes back is no jump. None at all
    where so few have been that one of them would speak for many.

    Args:
        evaluations: site -> its scores of the candidate.
        past: the same of the committed rounds, oldest first.
        bound: the largest loss that counts, then and now.
    """
    found = {}
    for site, scores in evaluations.items():
        before = running([told[site] for told in past if site in told], "loss")
        if before is not None:
            found[site] = min(scores["loss"], bound) - min(before, bound)
    return found if len(found) >= min(SITES, len(evaluations)) else {}


def loss_trouble(found: Mapping[str, float], guard: Guard) -> Fact | None:
    """What is wrong with a new model's validation loss by the median of the sites' jumps, or nothing."""
    if guard.loss_jump is None or not found or (jump := median(found.values())) <= guard.loss_jump:
        return None
    return Fact(Kind.LOSS_HIGH, {"jump": jump, "sites": len(found), "limit": guard.loss_jump})


def dissent(evaluations: Scores, found: Mapping[str, float], guard: Guard, bound: float) -> list[Fact]:
    """The sites whose validation loss says otherwise than most sites' does, or nothing; of two, nobody knows."""
    if guard.loss_jump is None or len(evaluations) < SITES:
        return []
    beyond = {site for site, scores in evaluations.items() if scores["loss"] >= bound}
    high = beyond | {site for site, jump in found.items() if jump > guard.loss_jump}
    if 2 * len(high) > len(evaluations):
        low = sorted(evaluations.keys() - high)
        return [Fact(Kind.FEW_SITES_LOW, {"sites": low})] if low else []
    return [Fact(Kind.FEW_SITES_HIGH, {"sites": sorted(high)})] if high else []


def sentences(facts: Sequence[Fact]) -> list[str]:
    """What the guard has found and done, for people: what was wrong, who says otherwise, and what followed."""
    said: list[str] = []
    wrong = ""
    for fact in facts:
        if fact.kind in FOLLOWS:
            said.append(f"{wrong}: {fact}")
            wrong = ""
        else:
            wrong = f"{wrong} ({fact})" if wrong else str(fact)
    return [*said, wrong] if wrong else said


def blown_up(evaluations: Scores, federation: Federation) -> list[str]:
    """The sites at which a new model has no finite loss, if they are most and no quorum could train from it."""
    sites = [site for site, scores in sorted(evaluations.items()) if scores["loss"] >= LARGEST_LOSS]
    left = len(federation.active) - len(sites)
    return sites if left < federation.quorum and 2 * len(sites) > len(evaluations) else []


def outsized(norms: Mapping[str, float], guard: Guard) -> dict[str, str]:
    """site -> why, where a change is out of line with the other sites' in a round that is out of line itself.

    Args:
        norms: of the round, delta_norm/<site> among them.
        guard: its norm_factor is what a change's norm may be of the sites' median.
    """
    prefix = "delta_norm/"
    found = {name.removeprefix(prefix): norm for name, norm in norms.items() if name.startswith(prefix)}
    if guard.norm_factor is None or len(found) < SITES:
        return {}
    usual = median(found.values())
    reason = "its change has norm {:.4g}, over {:g} times the sites' median {:.4g}, and the round is out of line"
    return {
        site: reason.format(norm, guard.norm_factor, usual)
        for site, norm in found.items()
        if norm > guard.norm_factor * usual
    }


def diverged(t: int, sites: Sequence[str], lr: float, lowered: int) -> ModelDiverged:
    """Why round t cannot be committed, blown up at these sites after so many tries, and what to do."""
    tried = f"{lr:g}, lowered {lowered} times" if lowered else f"{lr:g}"
    return ModelDiverged(
        f"round {t} is not committed: its model, with server.lr {tried}, has no finite validation loss at "
        f"{', '.join(sites)}, and too few other sites could train from it. Write a lower server.lr, another "
        "server.optimizer or more server.guard.tries, or pause the sites named, and run again: the updates stay, "
        "and are aggregated again"
    )
