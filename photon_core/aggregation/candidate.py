"""The next global model: aggregated from what the sites have committed, guarded, evaluated, committed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from photon_core.aggregation.attempts import newest_update
from photon_core.aggregation.blame import Doubt, Suspects
from photon_core.aggregation.checks import check_counts
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.engine.aggregate import Aggregate, aggregate
from photon_core.aggregation.guard import norm_trouble, outsized
from photon_core.aggregation.guarded import last_notes, lowered, past_rounds, without, wrong_losses
from photon_core.aggregation.metrics import aggregate_metrics
from photon_core.aggregation.moments import Moments, average_moments
from photon_core.aggregation.server_optimizer import server_at
from photon_core.aggregation.tree import Tree, reference, regions
from photon_core.errors import QuorumMissed, StepOverflow, UpdateRejected
from photon_core.evidence.timeline import timeline
from photon_core.formatting import printable
from photon_core.run.claims import believed, excessive, least_steps, limits, token_limit
from photon_core.run.line import earlier, place_of
from photon_core.run.run import Run, federation_sha256, model_sha256, utc_now, versions
from photon_core.update.settings import check_settings
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, Span, UpdateManifest
from schemas.sections.server import Server

NOTES_LIMIT = 20  # of a site's own notes in a round's manifest


@dataclass(frozen=True)
class Candidate:
    """The next global model, written but not committed.

    Args:
        t: the round.
        result: the model, and the norms of the step to it.
        updates: what was aggregated.
        server: settings as used, with the learning rate of this step.
        moments: the mean of the sites' inner optimizer moments, where they are averaged.
        left_out: site -> why its update is not among them.
        groups: the regions that are averaged first; none where one server reads all.
        lowered: times that the guard has lowered server.lr.
        guard: what the guard has found and done, a sentence each.
        download: the model rounded to bfloat16, if that is what the sites fetch.
    """

    t: int
    result: Aggregate
    updates: dict[str, UpdateManifest]
    server: Server
    left_out: dict[str, str] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)
    lowered: int = 0
    guard: list[str] = field(default_factory=list)
    groups: dict[int, list[str]] = field(default_factory=dict)
    download: list[FileEntry] = field(default_factory=list)

    @property
    def sent(self) -> list[FileEntry]:
        """The model's files that the sites fetch."""
        return self.download or self.result.model


@dataclass(frozen=True)
class Course:
    """How a round went, apart from the model that it made.

    Args:
        sampled: the sites that were asked to train.
        evaluations: site -> scores of the model.
        not_evaluated: site -> why it has none.
        seconds: of the round's parts.
        incidents: site -> what the coordinator saw of it.
        opened: Unix time of its beginning.
        spans: what the coordinator itself knows, by its own clock, of who did what when.
    """

    sampled: list[str]
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    not_evaluated: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    incidents: dict[str, list[str]] = field(default_factory=dict)
    opened: float = 0.0
    spans: dict[str, list[Span]] = field(default_factory=dict)


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
    updates, reasons = _gather(run, federation, t, sampled, left_out, rejected)
    server = server_at(place_of(run, t), federation.server, federation.rounds.count)
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
    updates, _ = _gather(run, federation, t, sampled, {}, rejected)
    groups, found = regions(federation.aggregation, sampled), dict[str, str]()
    suspects = Suspects(run, t)
    while True:
        try:
            tree = Tree(run, t, groups, updates, federation.server, **limits(federation))
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


def _gather(
    run: Run,
    federation: Federation,
    t: int,
    sampled: list[str],
    left_out: Mapping[str, str],
    rejected: Mapping[str, str] | None,
) -> tuple[dict[str, UpdateManifest], dict[str, str]]:
    """The committed updates, and every sampled site that has none to aggregate, with the reason."""
    reasons, updates, suspects = {**left_out, **(rejected or {})}, {}, Suspects(run, t)
    for site in sampled:
        if site in (rejected or {}):
            continue
        try:
            update = suspects.read(site, partial(newest_update, run, federation, t, site))
            if update is None:
                reasons.setdefault(site, "no update was committed")
                continue
            check_settings(federation, site, update, left_out.get(site, ""))
            _check_work(federation, site, update)
        except UpdateRejected as error:
            reasons[site] = error.reason
        else:
            updates[site] = update if federation.server.weights != "fednova" else _counted(federation, update)
            reasons.pop(site, None)  # whatever its task said, the store has its work
    return updates, reasons


def _check_work(federation: Federation, site: str, update: UpdateManifest) -> None:
    """Refuse more work than is the site's own; the check of a manifest knows the largest site's limits alone.

    Raises:
        UpdateRejected: it claims too many tokens or local steps, or more tokens than its steps can have had; or it
            brings moments that nobody asked for.
    """
    if update.moments and federation.local.optimizer_state != "average":
        raise UpdateRejected(site, "it brings the optimizer's moments, though none are averaged")
    tokens, steps = token_limit(federation, site), federation.site_steps(site)
    check_counts(site, update, tokens, steps)
    most = update.steps * (tokens // steps)
    if update.tokens > most:
        claim = f"it claims {update.tokens} tokens in {update.steps} local steps"
        raise UpdateRejected(site, f"{claim}; at most {most} are possible")


def _counted(federation: Federation, update: UpdateManifest) -> UpdateManifest:
    """The update with as many local steps as FedNova divides its change by."""
    return update.model_copy(update={"steps": max(update.steps, least_steps(federation, update))})


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
) -> str:
    """What its validation loss has against the candidate; empty if nothing, or if no tries are left."""
    if candidate.lowered >= candidate.server.guard.tries:
        return ""
    return wrong_losses(run, federation, candidate, evaluations)


def _guarded(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate with its model; applied again, as `_mended`, while its norms are out of line."""
    past = [manifest.metrics for manifest in past_rounds(run, candidate.t)]
    while True:
        guard = candidate.server.guard
        last = candidate.lowered >= guard.tries
        try:
            candidate = _applied(run, federation, candidate)
            trouble = "" if last else norm_trouble(candidate.result.norms, past, guard)
        except StepOverflow as error:
            if last:
                raise
            trouble = str(error)
        if not trouble:
            return _with_download(run, federation, candidate)
        candidate = _mended(run, federation, candidate, trouble)  # the files stay as litter, for `photon gc`


def _mended(run: Run, federation: Federation, candidate: Candidate, trouble: str) -> Candidate:
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
    most, suspects = limits(federation), Suspects(run, t)
    factor = candidate.server.guard.lr_factor**candidate.lowered
    while len(updates) >= federation.quorum:
        try:
            if candidate.groups:
                tree = Tree(run, t, candidate.groups, updates, candidate.server, lowered=factor, **most)
                result = tree.aggregate()
            else:
                result = aggregate(run, t, updates, candidate.server, lowered=factor, **most)
            moments = candidate.moments if updates.keys() == candidate.updates.keys() else Moments()
            if federation.local.optimizer_state == "average" and not moments.files:
                moments = average_moments(
                    run,
                    t,
                    updates,
                    result.weights,
                    federation.model,
                    federation.local.optimizer,
                    candidate.server,
                    federation.aggregation.shard_bytes,
                    federation.aggregation,
                    dtype=federation.update.moments_dtype,
                )
            return replace(candidate, result=result, moments=moments, updates=updates, left_out=left_out)
        except (UpdateRejected, Doubt) as met:
            if rejected := suspects.judge(met, updates):
                del updates[rejected.site]
                left_out[rejected.site] = rejected.reason
    reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
    raise QuorumMissed(
        f"round {t}: {len(updates)} of {len(updates) + len(left_out)} sampled sites have a usable update, "
        f"the quorum is {federation.quorum}. Left out: {reasons}"
    )


def commit(run: Run, federation: Federation, candidate: Candidate, course: Course) -> RoundManifest:
    """Write round.json of the candidate: from here on it is the global model.

    Raises:
        StoreConflict: another writer committed this round first. Its result stands.
        ModelDiverged: no round could follow it.
    """
    before = run.round(candidate.t - 1)
    assert before is not None
    updates, evaluations = candidate.updates, believed(federation, course.evaluations)
    site_spans, clocks = timeline(updates, course.spans, course.opened)
    tokens = sum(update.tokens for update in updates.values())
    weights, t = candidate.result.weights, candidate.t
    references = {site: reference(run, update, weights[site]) for site, update in updates.items()}
    manifest = RoundManifest(
        run=federation.run,
        round=candidate.t,
        model_sha256=model_sha256(candidate.result.model),
        model=candidate.result.model,
        download=candidate.download,
        optimizer=candidate.result.optimizer,
        moments=candidate.moments.files,
        moment_sizes=candidate.moments.sizes,
        moment_ratio=candidate.moments.ratio,
        sampled=course.sampled,
        paused=federation.paused,
        updates=references,
        earlier=earlier(run, t, references),
        left_out=candidate.left_out,
        partials=candidate.result.partials,
        incidents=_incidents(updates, course.incidents, excessive(federation, course.evaluations)),
        server=candidate.server.model_dump(mode="json"),
        lowered=candidate.lowered,
        guard=[*candidate.guard, *last_notes(run, federation, candidate, course.evaluations)],
        global_step=before.global_step + max(update.steps for update in updates.values()),
        total_tokens=before.total_tokens + tokens,
        behind=before.behind,
        metrics=candidate.result.norms
        | aggregate_metrics(federation, candidate.result.weights, updates, evaluations),
        evaluations=evaluations,
        not_evaluated=course.not_evaluated,
        federation_sha256=federation_sha256(federation),
        previous_sha256=run.round_sha256(candidate.t - 1),
        seconds=course.seconds,
        opened=_written(course.opened),
        spans=site_spans,
        clocks=clocks,
        created=utc_now(),
        versions=versions(),
    )
    run.commit_round(manifest)
    return manifest


def _written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else ""


def _incidents(
    updates: Mapping[str, UpdateManifest], *coordinator: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """What the coordinator saw of each site, also of one that is left out, and what the site says itself."""
    found: dict[str, list[str]] = {}
    for seen in coordinator:
        for site, notes in seen.items():
            found.setdefault(site, []).extend(notes)
    for site, update in updates.items():
        found.setdefault(site, []).extend(printable(note, 300) for note in update.notes[:NOTES_LIMIT])
    return {site: notes for site, notes in found.items() if notes}
