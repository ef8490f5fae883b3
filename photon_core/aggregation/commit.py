"""The commit of a round: a candidate becomes the global model."""

from collections.abc import Mapping
from datetime import UTC, datetime

from photon_core.aggregation.candidate import Candidate, Course
from photon_core.aggregation.claims import believed, excessive
from photon_core.aggregation.guard import sentences
from photon_core.aggregation.guarded import last_facts
from photon_core.aggregation.metrics import aggregate_metrics
from photon_core.aggregation.routing import counted
from photon_core.aggregation.tree import reference
from photon_core.evidence.events import incidents
from photon_core.evidence.timeline import spans_of, timeline
from photon_core.formatting import printable
from photon_core.run.line import earlier
from photon_core.run.provenance import federation_sha256, utc_now, versions
from photon_core.run.run import Run, model_sha256
from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateManifest

NOTES_LIMIT = 20  # of a site's own notes in a round's manifest


def commit(run: Run, federation: Federation, candidate: Candidate, course: Course) -> RoundManifest:
    """Write round.json of the candidate: from here on it is the global model.

    Raises:
        StoreConflict: another writer committed this round first. Its result stands.
        ModelDiverged: no round could follow it.
    """
    before = run.round(candidate.t - 1)
    assert before is not None
    updates, evaluations = candidate.updates, believed(federation, course.evaluations)
    site_spans, clocks = timeline(updates, spans_of(course.events), course.opened)
    tokens = sum(update.tokens for update in updates.values())
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
        sampled=course.sampled,
        paused=federation.paused,
        updates=references,
        earlier=earlier(run, t, references),
        left_out=candidate.left_out,
        partials=candidate.result.partials,
        incidents=_incidents(updates, incidents(course.events), excessive(federation, course.evaluations)),
        server=candidate.server.model_dump(mode="json"),
        lowered=candidate.lowered,
        guard=sentences([*candidate.guard, *last_facts(run, federation, candidate, course.evaluations)]),
        global_step=before.global_step + max(update.steps for update in updates.values()),
        total_tokens=before.total_tokens + tokens,
        behind=before.behind,
        metrics=candidate.norms | aggregate_metrics(federation, candidate.result.weights, updates, evaluations),
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
