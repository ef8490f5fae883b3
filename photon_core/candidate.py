"""The next global model: aggregated from what the sites have committed, guarded, evaluated, committed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypedDict

from photon_core.aggregation.aggregate import Aggregate, aggregate
from photon_core.aggregation.blame import Doubt, Suspects
from photon_core.aggregation.check import check_counts
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.guard import (
    RUNNING_ROUNDS,
    blown_up,
    diverged,
    first_losses,
    loss_trouble,
    norm_trouble,
)
from photon_core.aggregation.moments import average_moments
from photon_core.aggregation.server_schedule import server_at
from photon_core.aggregation.tree import Tree, reference, regions
from photon_core.errors import QuorumMissed, StepOverflow, UpdateRejected, printable
from photon_core.layout import Run, model_sha256, versions
from photon_core.round_metrics import Scores, aggregate_metrics
from photon_core.rounds import federation_sha256, newest_update, utc_now
from photon_core.spans import timeline
from photon_core.training.infra import choose_infra
from schemas.aggregation import Aggregation
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, Span, UpdateManifest
from schemas.server import Server

NOTES_LIMIT = 20  # of a site's own notes in a round's manifest


class Limits(TypedDict):
    """Most tokens and local steps that a site can have trained in a round, and the pass's own numbers."""

    token_limit: int
    step_limit: int
    settings: Aggregation


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
        guard: what the guard has found and done, a sentence for each time that the round was applied again.
        download: the model rounded to bfloat16, if that is what the sites fetch.
    """

    t: int
    result: Aggregate
    updates: dict[str, UpdateManifest]
    server: Server
    left_out: dict[str, str] = field(default_factory=dict)
    moments: list[FileEntry] = field(default_factory=list)
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
    server = server_at(t, federation.server, federation.rounds.count)
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
            tree = Tree(run, t, groups, updates, federation.server, **_limits(federation))
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
            update = suspects.read(site, partial(newest_update, run, t, site))
            if update is None:
                reasons.setdefault(site, "no update was committed")
                continue
            _check_work(federation, site, update)
        except UpdateRejected as error:
            reasons[site] = error.reason
        else:
            updates[site] = update
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


def token_limit(federation: Federation, site: str) -> int:
    """Most tokens that a site can have trained in a round: each of its nodes that train apart makes all steps."""
    nodes = choose_infra(federation, site).nodes
    return nodes * federation.site_steps(site) * federation.local.batch_size * federation.model.max_seq_len


def _limits(federation: Federation) -> Limits:
    """For all sites: the largest one's."""
    tokens = max(token_limit(federation, site.name) for site in federation.sites)
    return Limits(token_limit=tokens, step_limit=federation.local.steps, settings=federation.aggregation)


def apply_again(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> Candidate | None:
    """The round from the same updates with a lower learning rate, if its validation loss says that it must be.

    Returns:
        another candidate, to be evaluated in its turn; None if this one is good, or no tries are left.
    """
    guard = candidate.server.guard
    trouble = loss_trouble(evaluations, _past_scores(_past(run, candidate.t), candidate), guard)
    if sites := blown_up(evaluations, federation):
        trouble = f"the validation loss is not finite at {', '.join(sites)}"
    if not trouble or len(candidate.guard) >= guard.tries:
        return None
    return _guarded(run, federation, _lowered(candidate, trouble))


def _last_notes(
    run: Run, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> list[str]:
    """What is still out of line with a candidate that is to be committed, because no tries are left.

    Raises:
        ModelDiverged: so much that no round could follow.
    """
    guard, past = candidate.server.guard, _past(run, candidate.t)
    if sites := blown_up(evaluations, federation):
        raise diverged(candidate.t, sites, candidate.server.lr, len(candidate.guard))
    found = [
        norm_trouble(candidate.result.norms, [manifest.metrics for manifest in past], guard),
        loss_trouble(evaluations, _past_scores(past, candidate), guard),
    ]
    return [f"{trouble}: no tries are left, and it stands" for trouble in found if trouble and guard.tries]


def _guarded(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate with its model; applied again with a lower learning rate while its norms are out of line."""
    past = [manifest.metrics for manifest in _past(run, candidate.t)]
    while True:
        guard = candidate.server.guard
        last = len(candidate.guard) >= guard.tries
        try:
            candidate = _applied(run, federation, candidate)
            trouble = "" if last else norm_trouble(candidate.result.norms, past, guard)
        except StepOverflow as error:
            if last:
                raise
            trouble = str(error)
        if not trouble:
            return _with_download(run, federation, candidate)
        candidate = _lowered(candidate, trouble)  # the files stay as litter, for `photon gc`


def _with_download(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    if federation.update.model_dtype == "float32":
        return candidate
    shard_bytes = federation.aggregation.shard_bytes
    return replace(candidate, download=write_rounded(run, candidate.t, candidate.result.model, shard_bytes))


def _lowered(candidate: Candidate, trouble: str) -> Candidate:
    server = candidate.server
    lr = server.lr * server.guard.lr_factor
    note = f"{trouble}: server.lr lowered from {server.lr:g} to {lr:g}, and the round applied again"
    return replace(
        candidate,
        result=Aggregate([], [], {}),
        download=[],
        server=server.model_copy(update={"lr": lr}),
        guard=[*candidate.guard, note],
    )


def _past(run: Run, t: int) -> list[RoundManifest]:
    """The rounds just before round t, oldest first; round 0 has the first model's norm."""
    manifests = [run.round(r) for r in range(max(0, t - RUNNING_ROUNDS), t)]
    return [manifest for manifest in manifests if manifest is not None]


def _past_scores(past: list[RoundManifest], candidate: Candidate) -> list[Scores]:
    """The sites' evaluations in the rounds just before; where there are none, what training found."""
    found: list[Scores] = [manifest.evaluations for manifest in past]
    return found if any(found) else [first_losses(candidate.updates)]


def _applied(run: Run, federation: Federation, candidate: Candidate) -> Candidate:
    """The candidate's usable updates aggregated with its settings.

    Raises:
        QuorumMissed: there are too few of them.
    """
    t, updates, left_out = candidate.t, dict(candidate.updates), dict(candidate.left_out)
    limits = _limits(federation)
    lowered, suspects = candidate.server.guard.lr_factor ** len(candidate.guard), Suspects(run, t)
    while len(updates) >= federation.quorum:
        try:
            if candidate.groups:
                tree = Tree(run, t, candidate.groups, updates, candidate.server, lowered=lowered, **limits)
                result = tree.aggregate()
            else:
                result = aggregate(run, t, updates, candidate.server, lowered=lowered, **limits)
            moments = candidate.moments if updates.keys() == candidate.updates.keys() else []
            if federation.local.optimizer_state == "average" and not moments:
                moments = average_moments(
                    run,
                    t,
                    updates,
                    result.weights,
                    federation.model,
                    federation.local.optimizer.name,
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
    updates = candidate.updates
    site_spans, clocks = timeline(updates, course.spans, course.opened)
    tokens = sum(update.tokens for update in updates.values())
    manifest = RoundManifest(
        run=federation.run,
        round=candidate.t,
        model_sha256=model_sha256(candidate.result.model),
        model=candidate.result.model,
        download=candidate.download,
        optimizer=candidate.result.optimizer,
        moments=candidate.moments,
        sampled=course.sampled,
        paused=federation.paused,
        updates={site: reference(run, update, candidate.result.weights[site]) for site, update in updates.items()},
        left_out=candidate.left_out,
        partials=candidate.result.partials,
        incidents=_incidents(updates, course.incidents),
        server=candidate.server.model_dump(mode="json"),
        guard=[*candidate.guard, *_last_notes(run, federation, candidate, course.evaluations)],
        global_step=before.global_step + max(update.steps for update in updates.values()),
        total_tokens=before.total_tokens + tokens,
        metrics=candidate.result.norms
        | aggregate_metrics(federation, candidate.result.weights, updates, course.evaluations),
        evaluations=course.evaluations,
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


def _incidents(updates: dict[str, UpdateManifest], coordinator: dict[str, list[str]]) -> dict[str, list[str]]:
    """What the coordinator saw of each site, also of one that is left out, and what the site says itself."""
    found = {site: list(notes) for site, notes in coordinator.items()}
    for site, update in updates.items():
        found.setdefault(site, []).extend(printable(note, 300) for note in update.notes[:NOTES_LIMIT])
    return {site: notes for site, notes in found.items() if notes}
