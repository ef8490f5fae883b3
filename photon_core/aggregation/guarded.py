"""The guard at work: the problems of a candidate for a round, and the candidate that is tried next."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from photon_core.aggregation.aggregate import Aggregate
from photon_core.aggregation.candidate import Candidate
from photon_core.aggregation.claims import largest_loss
from photon_core.aggregation.guard import (
    RUNNING_ROUNDS,
    blown_up,
    dissent,
    diverged,
    first_losses,
    jumps,
    loss_trouble,
    norm_trouble,
)
from photon_core.aggregation.key_layers import KeyLayers
from photon_core.aggregation.metrics import Scores
from photon_core.aggregation.moments import Moments
from photon_core.evidence.events import Fact, Kind
from photon_core.run.line import line
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import RoundManifest


def past_rounds(run: Run, t: int) -> list[RoundManifest]:
    """The rounds just before round t on its line, oldest first; round 0 has the norm of the first model."""
    return list(islice(line(run, t - 1), RUNNING_ROUNDS))[::-1] if t else []


def wrong_losses(run: Run, federation: Federation, candidate: Candidate, evaluations: Scores) -> list[Fact]:
    """The problem with a candidate's validation losses, and the sites that contradict it; empty without one."""
    guard = candidate.server.guard
    above = _jumps(federation, candidate, past_rounds(run, candidate.t), evaluations)
    trouble = loss_trouble(above, guard)
    if sites := blown_up(evaluations, federation):
        trouble = Fact(Kind.LOSS_INFINITE, {"sites": sites})
    return [trouble, *dissent(evaluations, above, guard, largest_loss(federation))] if trouble else []


def last_facts(run: Run, federation: Federation, candidate: Candidate, evaluations: Scores) -> list[Fact]:
    """The problems that remain in a candidate to be committed: no tries are left, or only few sites report them.

    Raises:
        ModelDiverged: no round can follow this model.
    """
    guard, past = candidate.server.guard, past_rounds(run, candidate.t)
    if sites := blown_up(evaluations, federation):
        raise diverged(candidate.t, sites, candidate.server.lr, candidate.lowered)
    if not guard.tries:
        return []
    above = _jumps(federation, candidate, past, evaluations)
    troubles = [
        norm_trouble(candidate.norms, [manifest.metrics for manifest in past], guard),
        loss_trouble(above, guard),
    ]
    facts = [fact for trouble in troubles if trouble for fact in (trouble, Fact(Kind.TRIES_ENDED))]
    return [*facts, *dissent(evaluations, above, guard, largest_loss(federation))]


def _jumps(
    federation: Federation, candidate: Candidate, past: list[RoundManifest], evaluations: Scores
) -> dict[str, float]:
    """site -> how far its loss is above its running value; in the first rounds, above its first training loss."""
    scores: list[Scores] = [manifest.evaluations for manifest in past]
    if not any(scores):
        scores = [first_losses(candidate.updates)]
    return jumps(evaluations, scores, largest_loss(federation))


def with_lower_lr(candidate: Candidate, trouble: Sequence[Fact]) -> Candidate:
    """The candidate for the next try, with a lower learning rate."""
    server = candidate.server
    lr = server.lr * server.guard.lr_factor
    fact = Fact(Kind.LR_LOWERED, {"before": server.lr, "after": lr})
    return replace(
        candidate,
        result=Aggregate([], [], {}),
        download=[],
        server=server.model_copy(update={"lr": lr}),
        lowered=candidate.lowered + 1,
        guard=[*candidate.guard, *trouble, fact],
    )


def without_sites(candidate: Candidate, bad: Mapping[str, str], trouble: Sequence[Fact]) -> Candidate:
    """The candidate for the next try, without these sites.

    Args:
        candidate: candidate that is out of line.
        bad: reasons by site.
        trouble: problems that the guard has found.
    """
    return replace(
        candidate,
        result=Aggregate([], [], {}),
        key_layers=KeyLayers(),
        download=[],
        updates={site: update for site, update in candidate.updates.items() if site not in bad},
        moments=Moments(),
        left_out={**candidate.left_out, **bad},
        guard=[*candidate.guard, *trouble, Fact(Kind.UPDATES_DROPPED, {"sites": sorted(bad)})],
    )
