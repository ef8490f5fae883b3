"""The guard's tests: a round's norms, or its loss, are out of line with the previous rounds.

The first round is compared with the model that it starts from. The norm of that model is in round 0's metrics, and
its loss is the loss of the sites' first local step. The norm of the first server step has nothing to be compared
with.

The numbers that sites report are judged by their median, so that one site alone can neither blind nor trigger the
guard.
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

RUNNING_ROUNDS = 5  # rounds whose median is the running value
FOLLOWS = {Kind.LR_LOWERED, Kind.UPDATES_DROPPED, Kind.TRIES_ENDED}
SITES = 3  # least number for a median that one site cannot move


def running(past: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The median of a metric over the last rounds that have it; None if no round has it."""
    values = [metrics[name] for metrics in past if name in metrics][-RUNNING_ROUNDS:]
    return median(values) if values else None


def norm_trouble(norms: Mapping[str, float], past: Sequence[Mapping[str, float]], guard: Guard) -> Fact | None:
    """The problem with a new model's norms; None if there is none.

    Args:
        norms: norms of the candidate.
        past: metrics of the committed rounds, oldest first.
        guard: settings of the guard.
    """
    for metric in reported("coordinator"):
        usual = running(past, metric.name) if metric.watched else None
        if guard.norm_factor and usual and (norm := norms[metric.name]) > guard.norm_factor * usual:
            facts = {"metric": metric.name, "norm": norm, "times": norm / usual, "usual": usual}
            return Fact(Kind.NORM_HIGH, facts)
    return None


def first_losses(updates: Mapping[str, UpdateManifest]) -> Scores:
    """site -> the loss of its first local step, which is the base model's, on text that the site trains on.

    A round's validation loss is compared with it while no previous round has been evaluated.
    """
    losses = {site: update.metrics.get("first_loss") for site, update in updates.items()}
    return {site: {"loss": max(0.0, min(loss, LARGEST_LOSS))} for site, loss in losses.items() if loss is not None}


def jumps(evaluations: Scores, past: Sequence[Scores], bound: float) -> dict[str, float]:
    """site -> how far its validation loss is above its own running value (nats).

    Sites that were not evaluated before are not compared, so that a site that joins, pauses or comes back is no
    jump. The result is empty if too few sites are left, because one site would then decide for many.

    Args:
        evaluations: scores of the candidate by site.
        past: scores of the committed rounds by site, oldest first.
        bound: largest loss that counts, in the past and now.
    """
    jump = {}
    for site, scores in evaluations.items():
        before = running([round_scores[site] for round_scores in past if site in round_scores], "loss")
        if before is not None:
            jump[site] = min(scores["loss"], bound) - min(before, bound)
    return jump if len(jump) >= min(SITES, len(evaluations)) else {}


def loss_trouble(above: Mapping[str, float], guard: Guard) -> Fact | None:
    """The problem with a new model's validation loss, by the median of the sites' jumps; None if there is none."""
    if guard.loss_jump is None or not above or (jump := median(above.values())) <= guard.loss_jump:
        return None
    return Fact(Kind.LOSS_HIGH, {"jump": jump, "sites": len(above), "limit": guard.loss_jump})


def dissent(evaluations: Scores, above: Mapping[str, float], guard: Guard, bound: float) -> list[Fact]:
    """The sites whose validation loss contradicts that of most sites. Of two sites, neither is the majority."""
    if guard.loss_jump is None or len(evaluations) < SITES:
        return []
    beyond = {site for site, scores in evaluations.items() if scores["loss"] >= bound}
    high = beyond | {site for site, jump in above.items() if jump > guard.loss_jump}
    if 2 * len(high) > len(evaluations):
        low = sorted(evaluations.keys() - high)
        return [Fact(Kind.FEW_SITES_LOW, {"sites": low})] if low else []
    return [Fact(Kind.FEW_SITES_HIGH, {"sites": sorted(high)})] if high else []


def sentences(facts: Sequence[Fact]) -> list[str]:
    """The guard's findings and actions, for people: a problem, the sites that contradict it, and the action."""
    texts: list[str] = []
    wrong = ""
    for fact in facts:
        if fact.kind in FOLLOWS:
            texts.append(f"{wrong}: {fact}")
            wrong = ""
        else:
            wrong = f"{wrong} ({fact})" if wrong else str(fact)
    return [*texts, wrong] if wrong else texts


def blown_up(evaluations: Scores, federation: Federation) -> list[str]:
    """The sites at which a new model has no finite loss, if they are most sites and the others are no quorum."""
    sites = [site for site, scores in sorted(evaluations.items()) if scores["loss"] >= LARGEST_LOSS]
    left = len(federation.active) - len(sites)
    return sites if left < federation.quorum and 2 * len(sites) > len(evaluations) else []


def outsized(norms: Mapping[str, float], guard: Guard) -> dict[str, str]:
    """site -> why its change or key layers are out of line with the other sites', in a round that is out of line.

    Args:
        norms: norms of the round, delta_norm/<site> and key_distance/<site> among them.
        guard: settings of the guard; norm_factor bounds a norm relative to the sites' median.
    """
    found: dict[str, str] = {}
    for prefix, what in ("key_distance/", "its key layers have distance"), ("delta_norm/", "its change has norm"):
        by_site = {name.removeprefix(prefix): norm for name, norm in norms.items() if name.startswith(prefix)}
        if guard.norm_factor is None or len(by_site) < SITES:
            continue
        usual = median(by_site.values())
        reason = f"{what} {{:.4g}}, over {{:g}} times the sites' median {{:.4g}}, and the round is out of line"
        found |= {
            site: reason.format(norm, guard.norm_factor, usual)
            for site, norm in by_site.items()
            if norm > guard.norm_factor * usual
        }
    return found


def diverged(t: int, sites: Sequence[str], lr: float, lowered: int) -> ModelDiverged:
    """The error for a round that cannot be committed, because its model has no finite loss at these sites.

    Args:
        t: number of the round.
        sites: names of the sites.
        lr: learning rate of the last try.
        lowered: times that the guard has lowered the learning rate.
    """
    tried = f"{lr:g}, lowered {lowered} times" if lowered else f"{lr:g}"
    return ModelDiverged(
        f"round {t} is not committed: its model, with server.lr {tried}, has no finite validation loss at "
        f"{', '.join(sites)}, and too few other sites could train from it. Lower server.lr, change "
        "server.optimizer, raise server.guard.tries, or pause these sites. Then run again: the updates are kept, "
        "and are aggregated again"
    )
