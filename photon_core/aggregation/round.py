"""A round's next global model: updates are gathered and aggregated, and the guard may retry the step."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from photon_core.aggregation.aggregate import Aggregate, aggregate, base_of
from photon_core.aggregation.blame import Doubt, Suspects, blame
from photon_core.aggregation.candidate import Candidate
from photon_core.aggregation.choice import OPTIONS, PARENT, UNCHOSEN, choose, mean_losses, with_choice
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.gather import gather
from photon_core.aggregation.guard import norm_trouble, outsized
from photon_core.aggregation.guarded import past_rounds, with_lower_lr, without_sites, wrong_losses
from photon_core.aggregation.key_layers import KeyLayers, attend_members
from photon_core.aggregation.metrics import Scores
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
from schemas.sections.worldlm import AUTO


def aggregate_round(
    run: Run,
    federation: Federation,
    t: int,
    sampled: list[str],
    left_out: dict[str, str],
    rejected: Mapping[str, str] | None = None,
) -> Candidate:
    """Aggregate the updates of the sampled sites. A site with a bad update is excluded by name.

    More sites than aggregation.tree_above are aggregated by regions. Results of `aggregate_region` are reused.

    Args:
        run, federation, t, sampled: run, federation file, round and sampled sites.
        left_out: reasons by site, for sites whose steps ended without an update.
        rejected: reasons by site, for updates that are known to be bad.

    Raises:
        QuorumMissed: fewer sites than the quorum have a usable update; the message has every reason.
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
    """Commit a region's mean, or, once every region has one, its sites' cosines with the global mean.

    Args:
        run, federation, t, sampled: run, federation file, round and sampled sites.
        region: number of the region.
        rejected: reasons by site, for updates that are known to be bad.
        second_look: flag: commit the cosines.

    Returns:
        the reasons by site, for the region's bad updates.
    """
    updates, _ = gather(run, federation, t, sampled, {}, rejected)
    groups, reasons = regions(federation.aggregation, sampled), dict[str, str]()
    most, limits = most_work(members(federation).values()), Limits.of(federation.aggregation)
    suspects = Suspects(run, t)
    while True:
        try:
            tree = Tree(run, t, groups, updates, federation.server, most, limits)
            if region in tree.groups:
                tree.compare(region) if second_look else tree.partial(region)
            return reasons
        except (UpdateRejected, Doubt) as error:
            if (bad := suspects.judge(error, updates)) is None:
                continue
            if bad.site not in updates:  # a region's mean is damaged: the root computes it again
                raise
            del updates[bad.site]
            reasons[bad.site] = bad.reason


def apply_again(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> Candidate | None:
    """The round from the same updates with a lower learning rate, if the validation loss requires it.

    Returns:
        another candidate, which is evaluated in its turn; None if this one is good, or no tries are left.
    """
    trouble = retry_reasons(run, federation, candidate, evaluations)
    return _guarded(run, federation, _next_try(run, federation, candidate, trouble)) if trouble else None


def retry_reasons(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> list[Fact]:
    """The problems with the candidate's validation loss; empty if there are none, or if no tries are left."""
    if candidate.lowered >= candidate.server.guard.tries:
        return []
    return wrong_losses(run, federation, candidate, evaluations)


def alternatives(run: Run, federation: Federation, candidate: Candidate) -> dict[str, Candidate]:
    """The candidate with the key layers of every option of `temperature: auto`, if the mean is finite.

    Alone, as UNCHOSEN, without auto, or if an option was chosen before. Also with noise on the mean: members
    would get several noisy means of the same changes, which weakens the noise.
    """
    worldlm, layers, found = federation.worldlm, candidate.key_layers, {UNCHOSEN: candidate}
    if worldlm is None or worldlm.temperature != AUTO or not layers.files or layers.chosen:
        return found
    if federation.server.noise_multiplier:
        return found
    base, limits, server = base_of(run, candidate.t), Limits.of(federation.aggregation), federation.server
    for option in OPTIONS:
        if option not in (UNCHOSEN, PARENT):  # a federation's mean has no parent's row
            with suppress(UpdateRejected):
                other = attend_members(run, base, candidate.updates, worldlm, server, limits, option)
                found[option] = replace(candidate, key_layers=other)
    return found


def best_of(
    run: Run, federation: Federation, candidates: Mapping[str, Candidate], scores: Mapping[str, Scores]
) -> Candidate:
    """The alternative with the lowest loss, with its residuals.

    Args:
        run, federation: run and file.
        candidates: what `alternatives` has returned.
        scores: the members' scores of each.
    """
    losses = mean_losses(scores)
    if not losses:
        return candidates[UNCHOSEN]
    chosen = choose(losses)
    best, limits = candidates[chosen], Limits.of(federation.aggregation)
    layers = replace(best.key_layers, attention=with_choice(best.key_layers.attention, losses))
    residuals = best.residuals
    if chosen != UNCHOSEN:
        residuals = divide(run, base_of(run, best.t), best.updates, layers, federation, limits)
    return replace(best, key_layers=layers, residuals=residuals)


def _guarded(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate with its model; retried as `_next_try` while its norms are out of line."""
    past = [manifest.metrics for manifest in past_rounds(run, candidate.t)]
    while True:
        guard = candidate.server.guard
        last = candidate.lowered >= guard.tries
        try:
            candidate = _applied(run, federation, candidate)
            trouble = None if last else norm_trouble(candidate.norms, past, guard)
        except StepOverflow as error:
            if last:
                raise
            trouble = Fact(Kind.STEP_OVERFLOWED, {"error": str(error)})
        if not trouble:
            return _with_download(run, federation, candidate)
        candidate = _next_try(run, federation, candidate, [trouble])  # the files are orphans, for `photon gc`


def _next_try(run: Run, federation: Federation, candidate: Candidate, trouble: list[Fact]) -> Candidate:
    """The candidate for the next try: without the sites whose changes are out of line with the others', if there
    are such sites and the rest is a quorum; else with a lower learning rate."""
    norms = candidate.norms
    if not candidate.result.norms:  # the step overflows, but a plain mean does not: it gives the norms
        plain = candidate.server.model_copy(update={"optimizer": "fedavg", "lr": 1.0, "momentum": 0.0})
        mean = _applied(run, federation, replace(candidate, server=plain))
        candidate, norms = replace(mean, server=candidate.server), mean.norms
    bad = outsized(norms, candidate.server.guard)
    if not bad or len(candidate.updates) - len(bad) < federation.quorum:
        return with_lower_lr(candidate, trouble)
    return without_sites(candidate, bad, trouble)


def _with_download(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    if federation.update.model_dtype == "float32":
        return candidate
    shard_bytes = federation.aggregation.shard_bytes
    return replace(candidate, download=write_rounded(run, candidate.t, candidate.result.model, shard_bytes))


def _applied(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate's usable updates aggregated with its settings.

    Raises:
        QuorumMissed: too few updates are usable.
    """
    t, updates, left_out = candidate.t, dict(candidate.updates), dict(candidate.left_out)
    most, suspects = most_work(members(federation).values()), Suspects(run, t)
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
                moments = _moments(run, federation, t, updates, result.weights, limits)
            candidate = replace(candidate, result=result, key_layers=key_layers, residuals=residuals)
            return replace(candidate, moments=moments, updates=updates, left_out=left_out)
        except (UpdateRejected, Doubt) as error:
            if rejected := suspects.judge(error, updates):
                del updates[rejected.site]
                left_out[rejected.site] = rejected.reason
    reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
    raise QuorumMissed(
        f"round {t}: {len(updates)} of {len(updates) + len(left_out)} sampled sites have a usable update, "
        f"the quorum is {federation.quorum}. Excluded: {reasons}"
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
    layers = attend_members(run, base, updates, federation.worldlm, federation.server, limits)
    return layers, divide(run, base, updates, layers, federation, limits)


def _moments(
    run: Run,
    federation: Federation,
    t: int,
    updates: Mapping[str, UpdateManifest],
    weights: Mapping[str, float],
    limits: Limits,
) -> Moments:
    """The mean of the members' moments. A federation may bring none, or those of another optimizer."""
    inner, spec, bring = {child.name for child in federation.federations}, MomentSpec.of(federation), {}
    for name, update in updates.items():
        with blame(name):
            if name not in inner or spec.fits(update.moments):
                bring[name] = update
    if not bring:
        return Moments()
    total = 1.0 if len(bring) == len(updates) else sum(weights[name] for name in bring)
    rule = moments_rule(federation.server, {name: weights[name] / total for name in bring})
    return average_moments(run, t, bring, rule, spec, limits)
