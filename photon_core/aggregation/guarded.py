"""What the guard finds wrong with a candidate for a round, and what is applied next."""

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
from photon_core.aggregation.metrics import Scores
from photon_core.aggregation.moments import Moments
from photon_core.evidence.events import Fact, Kind
from photon_core.run.line import line
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import RoundManifest


def past_rounds(run: Run, t: int) -> list[RoundManifest]:
    """The rounds just before round t on its line, oldest first; round 0 has the first model's norm."""
    return list(islice(line(run, t - 1), RUNNING_ROUNDS))[::-1] if t else []


def wrong_losses(run: Run, federation: Federation, candidate: Candidate, evaluations: Scores) -> list[Fact]:
    """What is wrong with a candidate's validation losses, and who says otherwise; or nothing."""
    guard = candidate.server.guard
    found = _jumps(federation, candidate, past_rounds(run, candidate.t), evaluations)
    trouble = loss_trouble(found, guard)
    if sites := blown_up(evaluations, federation):
        trouble = Fact(Kind.LOSS_INFINITE, {"sites": sites})
    return [trouble, *dissent(evaluations, found, guard, largest_loss(federation))] if trouble else []


def last_facts(run: Run, federation: Federation, candidate: Candidate, evaluations: Scores) -> list[Fact]:
    """What is still out of line with a candidate that is to be committed: no tries are left, or few sites say so.

    Raises:
        ModelDiverged: so much that no round could follow.
    """
    guard, past = candidate.server.guard, past_rounds(run, candidate.t)
    if sites := blown_up(evaluations, federation):
        raise diverged(candidate.t, sites, candidate.server.lr, candidate.lowered)
    if not guard.tries:
        return []
    found = _jumps(federation, candidate, past, evaluations)
    troubles = [
        norm_trouble(candidate.result.norms, [manifest.metrics for manifest in past], guard),
        loss_trouble(found, guard),
    ]
    facts = [fact for trouble in troubles if trouble for fact in (trouble, Fact(Kind.TRIES_ENDED))]
    return [*facts, *dissent(evaluations, found, guard, largest_loss(federation))]


def _jumps(
    federation: Federation, candidate: Candidate, past: list[RoundManifest], evaluations: Scores
) -> dict[str, float]:
    """site -> how far its loss is above its running value, or in the first rounds above what training found."""
    scores: list[Scores] = [manifest.evaluations for manifest in past]
    if not any(scores):
        scores = [first_losses(candidate.updates)]
    return jumps(evaluations, scores, largest_loss(federation))


def lowered(candidate: Candidate, trouble: Sequence[Fact]) -> Candidate:
    """The candidate to apply again, with a lower learning rate."""
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


def without(candidate: Candidate, bad: Mapping[str, str], trouble: Sequence[Fact]) -> Candidate:
    """The candidate to apply again, without these sites, each with its reason."""
    return replace(
        candidate,
        result=Aggregate([], [], {}),
        download=[],
        updates={site: update for site, update in candidate.updates.items() if site not in bad},
        moments=Moments(),
        left_out={**candidate.left_out, **bad},
        guard=[*candidate.guard, *trouble, Fact(Kind.UPDATES_DROPPED, {"sites": sorted(bad)})],
    )
