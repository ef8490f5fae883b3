"""The coordinator's steps: open the run, aggregate the updates, commit and publish the round."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from photon_core.aggregation import round as rounds
from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.claims import believed
from photon_core.aggregation.commit import commit
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.guard import sentences
from photon_core.aggregation.routing import send_down
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import PhotonError
from photon_core.evidence.evaluations import evaluation
from photon_core.evidence.events import Fact, Kind, Log
from photon_core.evidence.summary import summary
from photon_core.evidence.trackers import check_trackers
from photon_core.formatting import unmarked
from photon_core.run import opening
from photon_core.run.line import rounds_left
from photon_core.run.members import check_members
from photon_core.run.opening import check_frozen
from photon_core.run.run import run_of
from photon_core.run.sampling import sampled_members
from photon_core.run.start import Initial
from photon_core.run.updates import check_open
from photon_core.training import entry
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tasks.events import emit
from tasks.runtime import Runtime, log_round
from tasks.site import restarted
from tasks.tags import STEP, artifact_key

INITIAL_MODEL_TIMEOUT = 3600.0
ROUND_TAG = "round:"


@restarted(task_run_name="open run", tags=[f"{STEP}open run"])
def open_run(runtime: Runtime, federation: Federation) -> int:
    """Create the run's first manifests if they are missing (InitModel).

    Returns:
        Number of the latest committed round.
    """
    check_trackers(federation)
    check_members(federation)
    with runtime.log.step("open"), tempfile.TemporaryDirectory(prefix="photon-") as folder:
        run = run_of(federation)

        def initial_model() -> Initial:
            make = partial(entry.make_initial, federation, Path(folder))
            return runtime.launcher.run(make, label=f"{federation.run}/initial", timeout=INITIAL_MODEL_TIMEOUT)

        opening.open_run(run, federation, load_tokenizer(federation.tokenizer).sha256, initial_model)
        latest = run.latest()
        assert latest is not None
        return latest


def open_round(runtime: Runtime, federation: Federation, t: int | None) -> int | None:
    """Number of the round to do: t, or the one after the latest; None if all are committed.

    Opens the run if necessary.

    Raises:
        FederationError: the file no longer fits this run.
        StoreConflict: round t is already committed.
        PhotonError: round t - 1 is not committed.
    """
    if t is None:
        t = _begun_before() or open_run(runtime, federation) + 1
        run = run_of(federation)
        if run.round(t) is None and not rounds_left(federation, run.round(t - 1)):
            return None
        _remember(t)
    if _is_retry() and (first := run_of(federation).run_manifest()) is not None:  # its file may have been edited
        check_frozen(first, federation, load_tokenizer(federation.tokenizer).sha256)
    if not _is_retry() or run_of(federation).round(t) is None:
        check_open(federation, t)
    return t


def committed_before(runtime: Runtime, federation: Federation, t: int) -> RoundManifest | None:
    """The manifest of round t if it exists, which happens in a retry only; else None. Repeats table and report:
    the process that committed it may have been killed before that."""
    manifest = run_of(federation).round(t)
    if manifest is not None:
        show(runtime, federation, manifest)
    return manifest


def _is_retry() -> bool:
    return (flow_run.run_count or 1) > 1


def _begun_before() -> int | None:
    """The round that this flow run began before it crashed: a retry continues that round only."""
    if not _is_retry():
        return None
    found = [tag.removeprefix(ROUND_TAG) for tag in flow_run.tags if tag.startswith(ROUND_TAG)]
    return int(found[0]) if found else None


def _remember(t: int) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, f"{ROUND_TAG}{t}"}))


@task(task_run_name="sample sites", tags=[f"{STEP}sample sites"], cache_policy=NO_CACHE)
def sample(federation: Federation, t: int) -> list[str]:
    """The K of P members that take part in round t. Paused ones are skipped, with a warning that names them."""
    if federation.paused:
        get_run_logger().warning("round %d skips the paused sites: %s", t, ", ".join(federation.paused))
    return sampled_members(run_of(federation), federation, t)


@task(task_run_name="route residuals", tags=[f"{STEP}route residuals"], cache_policy=NO_CACHE)
def send_residuals(runtime: Runtime, federation: Federation, t: int, sampled: list[str]) -> None:
    """Give each member the key layers that fit it best of those that others handed up (WorldLM, line 8)."""
    with runtime.log.at(t).step("route residuals"):
        send_down(run_of(federation), federation, t, sampled, Limits.of(federation.aggregation))


@task(task_run_name="{step_name} region {region}", tags=[f"{STEP}aggregate"], cache_policy=NO_CACHE)
def aggregate_region(
    runtime: Runtime,
    federation: Federation,
    t: int,
    sampled: list[str],
    region: int,
    step_name: str,
    rejected: dict[str, str],
) -> dict[str, str]:
    """A region's part of the tree: average its sites, or compare them with the total mean. Returns bad updates."""
    with runtime.regions, runtime.log.at(t).step(f"{step_name} region {region}"):
        look = step_name == "compare"
        return rounds.aggregate_region(run_of(federation), federation, t, sampled, region, rejected, look)


@task(task_run_name="aggregate", tags=[f"{STEP}aggregate"], cache_policy=NO_CACHE)
def aggregate(
    runtime: Runtime,
    federation: Federation,
    t: int,
    sampled: list[str],
    left_out: dict[str, str],
    rejected: dict[str, str],
) -> Candidate:
    """Average the pseudo-gradients and apply the server optimizer. The result is not committed yet."""
    with runtime.log.at(t).step("aggregate"):
        candidate = rounds.aggregate_round(run_of(federation), federation, t, sampled, left_out, rejected)
        announce(runtime.log, t, candidate.left_out)
        _warn(runtime.log.at(t), candidate.guard)
        return candidate


def needs_retry(federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]) -> bool:
    """Whether the guard finds the candidate's validation loss too high, and retries are left."""
    return bool(rounds.retry_reasons(run_of(federation), federation, candidate, evaluations))


@task(task_run_name="choose a temperature", tags=[f"{STEP}choose"], cache_policy=NO_CACHE)
def choose(federation: Federation, found: dict[str, Candidate], members: dict[str, set[str]]) -> Candidate:
    """The alternative with the lowest committed loss.

    Args:
        federation: federation file.
        found: candidate by option.
        members: members that have evaluated it, by option.
    """
    run = run_of(federation)
    scores = {
        option: {name: given for name in members[option] if (given := evaluation(run, one.t, name, one.sent))}
        for option, one in found.items()
    }
    return rounds.best_of(
        run, federation, found, {option: believed(federation, each) for option, each in scores.items()}
    )


@task(task_run_name="apply again", tags=[f"{STEP}apply again"], cache_policy=NO_CACHE)
def apply_again(
    runtime: Runtime, federation: Federation, candidate: Candidate, evaluations: dict[str, dict[str, float]]
) -> Candidate:
    """Apply the round again with a lower server learning rate. The candidate must pass `needs_retry`."""
    with runtime.log.at(candidate.t).step("apply again"):
        again = rounds.apply_again(run_of(federation), federation, candidate, evaluations)
        assert again is not None
        bad = {site: why for site, why in again.left_out.items() if site not in candidate.left_out}
        announce(runtime.log, candidate.t, bad)
        _warn(runtime.log.at(candidate.t), again.guard[len(candidate.guard) :])
        return again


def _warn(log: Log, guard: list[Fact]) -> None:
    """Log what the guard has found and done."""
    for fact in guard:
        log.add(fact)
    for text in sentences(guard):
        get_run_logger().warning("round %d: %s", log.round, text)


def announce(log: Log, t: int, left_out: dict[str, str]) -> None:
    """Log every excluded site, and emit the event that triggers notifications."""
    for site, reason in left_out.items():
        event = log.at(t, site).append(Kind.SITE_EXCLUDED, reason=reason)
        get_run_logger().warning("%s", event)
        emit(event)


@task(task_run_name="track", tags=[f"{STEP}track"], cache_policy=NO_CACHE)
def track(runtime: Runtime, federation: Federation, manifest: RoundManifest) -> None:
    """Log a committed round to the experiment trackers. An unreachable tracker loses only its entry."""
    try:
        log_round(runtime.launcher, federation, manifest)
    except PhotonError as error:
        get_run_logger().warning("round %d is not in every experiment tracker: %s", manifest.round, error)


@task(task_run_name="publish", tags=[f"{STEP}publish"], cache_policy=NO_CACHE)
def publish(runtime: Runtime, federation: Federation, candidate: Candidate, round_log: RoundLog) -> RoundManifest:
    """Commit the round and publish it as a table artifact."""
    log = runtime.log.at(candidate.t)
    with log.step("publish"):
        manifest = commit(run_of(federation), federation, candidate, replace(round_log, events=runtime.log))
        for note in manifest.guard[len(sentences(candidate.guard)) :]:
            get_run_logger().warning("round %d: %s", candidate.t, note)
        show(runtime, federation, manifest)
    log.append(Kind.ROUND_PUBLISHED)
    return manifest


def show(runtime: Runtime, federation: Federation, manifest: RoundManifest) -> None:
    """Publish a table artifact of every site's part in the round, and start the report."""
    rows = [
        {name: unmarked(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in summary(manifest)
    ]
    create_table_artifact(
        rows,
        key=artifact_key(manifest.run, "round"),
        description=f"Run `{manifest.run}`, round {manifest.round}. Model `{manifest.model_sha256[:16]}`.",
    )
    runtime.reports.make(federation, manifest)
