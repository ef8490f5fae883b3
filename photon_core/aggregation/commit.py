"""The commit of a round: a candidate becomes the global model."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.claims import believed, excessive
from photon_core.aggregation.guard import sentences
from photon_core.aggregation.guarded import last_facts
from photon_core.aggregation.metrics import aggregate_metrics
from photon_core.aggregation.noise import added
from photon_core.aggregation.routing import counted
from photon_core.aggregation.tree import reference
from photon_core.evidence.events import Fact, Log, incidents
from photon_core.evidence.timeline import spans_of, timeline
from photon_core.formatting import printable
from photon_core.run.line import earlier
from photon_core.run.provenance import federation_sha256, utc_now, versions
from photon_core.run.run import Run, model_sha256
from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateManifest

NOTES_LIMIT = 20  # notes of a site in a round's manifest


def commit(run: Run, federation: Federation, candidate: Candidate, log: RoundLog) -> RoundManifest:
    """Write the candidate's round.json, which makes it the global model.

    Raises:
        StoreConflict: another process committed this round first. Its result is kept.
        ModelDiverged: no round can follow this model.
    """
    before = run.round(candidate.t - 1)
    assert before is not None
    updates, evaluations = candidate.updates, believed(federation, log.evaluations)
    event_log, last = log.events.at(candidate.t), last_facts(run, federation, candidate, log.evaluations)
    _add_last(event_log, last, excessive(federation, log.evaluations))
    events = event_log.events()
    site_spans, clocks = timeline(updates, spans_of(events), log.opened)
    weights, t = candidate.result.weights, candidate.t
    references = {site: reference(run, update, weights[site]) for site, update in updates.items()}
    manifest = RoundManifest(
        run=federation.run,
        round=candidate.t,
        entries=before.entries,
        key_layers=before.key_layers,
        attention=candidate.key_layers.attention,
        up=candidate.residuals.up,
        down=candidate.residuals.down,
        dropped=counted(candidate.residuals.dropped),
        model_sha256=model_sha256(candidate.model),
        model=candidate.model,
        download=candidate.download,
        optimizer=candidate.result.optimizer,
        moments=candidate.moments.files,
        moment_sizes=candidate.moments.sizes,
        moment_ratio=candidate.moments.ratio,
        sampled=log.sampled,
        paused=federation.paused,
        updates=references,
        earlier=earlier(run, t, references),
        left_out=candidate.left_out,
        partials=candidate.result.partials,
        incidents=_incidents(updates, incidents(events)),
        server=candidate.server.model_dump(mode="json"),
        noise=added(updates, weights, candidate.server),
        lowered=candidate.lowered,
        guard=sentences([*candidate.guard, *last]),
        global_step=before.global_step + max(update.steps for update in updates.values()),
        total_tokens=before.total_tokens + sum(update.tokens for update in updates.values()),
        behind=before.behind,
        metrics=candidate.norms | aggregate_metrics(federation, candidate.result.weights, updates, evaluations),
        evaluations=evaluations,
        not_evaluated=log.not_evaluated,
        federation_sha256=federation_sha256(federation),
        previous_sha256=run.round_sha256(candidate.t - 1),
        seconds=log.seconds,
        opened=_written(log.opened),
        spans=site_spans,
        clocks=clocks,
        created=utc_now(),
        versions=versions(),
    )
    run.commit_round(manifest)
    return manifest


def _add_last(log: Log, facts: Sequence[Fact], claims: Mapping[str, Fact]) -> None:
    """Log what is found about a round when it is committed.

    Args:
        log: log of the round.
        facts: findings about the model.
        claims: claims of sites beyond their bounds.
    """
    for fact in facts:
        log.add(fact)
    for site, claim in claims.items():
        log.at(log.round, site).add(claim)


def _written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else ""


def _incidents(updates: Mapping[str, UpdateManifest], seen: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Notes by site: those of the coordinator, also about excluded sites, then those of the site itself."""
    by_site = {site: list(notes) for site, notes in seen.items()}
    for site, update in updates.items():
        by_site.setdefault(site, []).extend(printable(note, 300) for note in update.notes[:NOTES_LIMIT])
    return {site: notes for site, notes in by_site.items() if notes}
