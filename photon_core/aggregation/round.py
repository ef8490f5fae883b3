"""A round's next global model: the updates gathered, aggregated and guarded, and applied again if need be."""

from collections.abc import Mapping
from dataclasses import replace

from photon_core.aggregation.aggregate import Aggregate, aggregate, base_of
from photon_core.aggregation.blame import Doubt, Suspects
from photon_core.aggregation.candidate import Candidate
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.gather import gather
from photon_core.aggregation.guard import norm_trouble, outsized
from photon_core.aggregation.guarded import lowered, past_rounds, without, wrong_losses
from photon_core.aggregation.key_layers import KeyLayers, attend_members
from photon_core.aggregation.moments import Moments, MomentSpec, average_moments
from photon_core.aggregation.residuals import NOTHING, Partition
from photon_core.aggregation.routing import divide
from photon_core.aggregation.rules import moments_rule
from photon_core.aggregation.server_optimizer import server_at
from photon_core.aggregation.tree import Tree, regions
from photon_core.errors import QuorumMissed, StepOverflow, UpdateRejected
from photon_core.evidence.events import Fact, Kind
from photon_core.run.line import place_of
from photon_core.run.members import members, most_work
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import UpdateManifest


def aggregate_round(
    run: Run,
    federation: Federation,
    t: int,
    sampled: list[str],
    left_out: dict[str, str],
    rejected: Mapping[str, str] | None = None,
) -> Candidate:
    """Aggregate what the sampled sites have committed; a bad update is left out by name.

    Above the number of sites that the file says, by regions; what `aggregate_region` has done is not done again.

    Args:
        run, federation, t, sampled: the round.
        left_out: site -> why its steps ended without an update.
        rejected: site -> why its update is bad, where that is known already.

    Raises:
        QuorumMissed: fewer sites than the quorum have a usable update; every reason is in the message.
    """
    updates, reasons = gather(run, federation, t, sampled, left_out, rejected)
    server = server_at(place_of(run, t), federation.server, federation.total_rounds)
    groups = regions(federation.aggregation, sampled)
    start = Candidate(t, Aggregate([], [], {}), updates, server, reasons, groups=groups)
    return _guarded(run, federation, start)


def aggregate_region(
    run: Run,
    federation: Federation,
    t: int,
    sampled: list[str],
    region: int,
    rejected: Mapping[str, str] | None = None,
    second_look: bool = False,
) -> dict[str, str]:
    """Commit a region's mean, or, once every region has one, its sites' cosines with the mean of all.

    Returns:
        the region's bad updates: site -> reason.
    """
    updates, _ = gather(run, federation, t, sampled, {}, rejected)
    groups, found = regions(federation.aggregation, sampled), dict[str, str]()
    most, limits = most_work(members(federation)), Limits.of(federation.aggregation)
    suspects = Suspects(run, t)
    while True:
        try:
            tree = Tree(run, t, groups, updates, federation.server, most, limits)
            if region in tree.groups:
                tree.compare(region) if second_look else tree.partial(region)
            return found
        except (UpdateRejected, Doubt) as met:
            if (bad := suspects.judge(met, updates)) is None:
                continue
            if bad.site not in updates:  # a region's mean is damaged: whoever combines them makes it anew
                raise
            del updates[bad.site]
            found[bad.site] = bad.reason


def apply_again(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> Candidate | None:
    """The round from the same updates with a lower learning rate, if its validation loss says that it must be.

    Returns:
        another candidate, to be evaluated in its turn; None if this one is good, or no tries are left.
    """
    trouble = mendable(run, federation, candidate, evaluations)
    return _guarded(run, federation, _mended(run, federation, candidate, trouble)) if trouble else None


def mendable(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> list[Fact]:
    """What its validation loss has against the candidate; empty if nothing, or if no tries are left."""
    if candidate.lowered >= candidate.server.guard.tries:
        return []
    return wrong_losses(run, federation, candidate, evaluations)


def _guarded(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate with its model; applied again, as `_mended`, while its norms are out of line."""
    past = [manifest.metrics for manifest in past_rounds(run, candidate.t)]
    while True:
        guard = candidate.server.guard
        last = candidate.lowered >= guard.tries
        try:
            candidate = _applied(run, federation, candidate)
            trouble = None if last else norm_trouble(candidate.result.norms, past, guard)
        except StepOverflow as error:
            if last:
                raise
            trouble = Fact(Kind.STEP_OVERFLOWED, {"error": str(error)})
        if not trouble:
            return _with_download(run, federation, candidate)
        candidate = _mended(run, federation, candidate, [trouble])  # the files stay as litter, for `photon gc`


def _mended(run: Run, federation: Federation, candidate: Candidate, trouble: list[Fact]) -> Candidate:
    """The candidate to apply again: without the sites whose changes are out of line with the others', where they
    and the quorum let that be; else with a lower learning rate."""
    norms = candidate.result.norms
    if not norms:  # the step overflows; a plain mean does not
        plain = candidate.server.model_copy(update={"optimizer": "fedavg", "lr": 1.0, "momentum": 0.0})
        found = _applied(run, federation, replace(candidate, server=plain))
        candidate, norms = replace(found, server=candidate.server), found.result.norms
    bad = outsized(norms, candidate.server.guard)
    if not bad or len(candidate.updates) - len(bad) < federation.quorum:
        return lowered(candidate, trouble)
    return without(candidate, bad, trouble)


def _with_download(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    if federation.update.model_dtype == "float32":
        return candidate
    shard_bytes = federation.aggregation.shard_bytes
    return replace(candidate, download=write_rounded(run, candidate.t, candidate.result.model, shard_bytes))


def _applied(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate's usable updates aggregated with its settings.

    Raises:
        QuorumMissed: there are too few of them.
    """
    t, updates, left_out = candidate.t, dict(candidate.updates), dict(candidate.left_out)
    most, suspects = most_work(members(federation)), Suspects(run, t)
    limits = Limits.of(federation.aggregation)
    lr_scale = candidate.server.guard.lr_factor**candidate.lowered
    while len(updates) >= federation.quorum:
        try:
            if candidate.groups:
                tree = Tree(run, t, candidate.groups, updates, candidate.server, most, limits)
                result = tree.aggregate(lr_scale)
            else:
                result = aggregate(run, t, updates, candidate.server, most=most, limits=limits, lr_scale=lr_scale)
            key_layers, residuals = _key_layers(run, federation, candidate, updates, limits)
            moments = candidate.moments if updates.keys() == candidate.updates.keys() else Moments()
            if federation.local.optimizer_state == "average" and not moments.files:
                spec = MomentSpec.of(federation)
                rule = moments_rule(candidate.server, result.weights)
                moments = average_moments(run, t, updates, rule, spec, limits)
            candidate = replace(candidate, result=result, key_layers=key_layers, residuals=residuals)
            return replace(candidate, moments=moments, updates=updates, left_out=left_out)
        except (UpdateRejected, Doubt) as met:
            if rejected := suspects.judge(met, updates):
                del updates[rejected.site]
                left_out[rejected.site] = rejected.reason
    reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
    raise QuorumMissed(
        f"round {t}: {len(updates)} of {len(updates) + len(left_out)} sampled sites have a usable update, "
        f"the quorum is {federation.quorum}. Left out: {reasons}"
    )


def _key_layers(
    run: Run, federation: Federation, candidate: Candidate, updates: Mapping[str, UpdateManifest], limits: Limits
) -> tuple[KeyLayers, Partition]:
    """The round's key layers and what becomes of residuals; as the candidate has them, if of the same updates."""
    if federation.worldlm is None:
        return KeyLayers(), NOTHING
    if candidate.key_layers.files and updates.keys() == candidate.updates.keys():
        return candidate.key_layers, candidate.residuals
    base = base_of(run, candidate.t)
    layers = attend_members(run, base, updates, federation.worldlm, limits)
    return layers, divide(run, base, updates, layers, federation, limits)
