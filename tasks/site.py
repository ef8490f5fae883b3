"""Steps of a site in a round: validate its shards, train H local steps, upload the update; and evaluate."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from photon_core.aggregation.attempts import is_done, superseded
from photon_core.aggregation.moments import moments_for
from photon_core.errors import Cancelled, ChildFailed, DeadlinePassed, Killed, PhotonError, StoreUnavailable
from photon_core.evidence.evaluations import commit_evaluation, evaluation
from photon_core.evidence.events import Kind, Log, incidents
from photon_core.evidence.timeline import Stopwatch, append_spans, phase, spans_of
from photon_core.run.model_cache import fetch_model
from photon_core.run.run import model_sha256, run_of
from photon_core.run.updates import last_contribution, next_attempt
from photon_core.training import entry
from photon_core.update.upload import EarlyUpload, upload_update
from schemas.federation import Federation
from schemas.manifests import FileEntry, RunManifest, UpdateManifest
from schemas.server_errors import told
from schemas.view import SiteView
from tasks.runtime import Runtime
from tasks.tags import STEP

if TYPE_CHECKING:
    from photon_core.training.entering import Entry
    from photon_core.training.job import LocalJob
    from photon_core.update.trained import Trained

REPORT_SECONDS = 5.0  # between two progress updates in the Prefect UI
VALIDATION_TIMEOUT = 3600.0
AGAIN_SECONDS = [2.0, 2.0, 10.0, 30.0, 60.0]  # backoff before each retry of a step whose process was killed
KILLED = len(AGAIN_SECONDS)


def again(_task: Any, run: Any, state: Any) -> bool:
    """Whether to retry a step: once if it broke or did not reach the store, up to KILLED times if it was killed,
    never if it was refused, cancelled or too late."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, Killed):
        return True
    if isinstance(error, ChildFailed):
        once_more = not isinstance(error, Cancelled | DeadlinePassed)
    else:
        once_more = isinstance(error, StoreUnavailable) or not isinstance(error, PhotonError)
    return once_more and run.run_count <= 1


# a task that is retried when its process is killed or breaks
restarted = partial(
    task, cache_policy=NO_CACHE, retries=KILLED, retry_delay_seconds=AGAIN_SECONDS, retry_condition_fn=again
)


@restarted(task_run_name="{view.name} / start", tags=[f"{STEP}start"])
def start(runtime: Runtime, view: SiteView) -> None:
    """Upload the site's checkpoint, from which the run starts, in the store's format.

    Raises:
        FederationError: the checkpoint does not fit the file's model.
    """
    with _log(runtime, 0, view.name).step("start"), tempfile.TemporaryDirectory(prefix="photon-") as folder:
        runtime.launcher.run(
            partial(entry.upload_start, view, Path(folder)),
            label=_label(view, 0),
            timeout=view.federation.rounds.deadline,
            log_path=_log_path(view),
        )


@restarted(task_run_name="{view.name} / validate", tags=[f"{STEP}validate"])
def validate(runtime: Runtime, view: SiteView, t: int) -> list[dict[str, Any]]:
    """Check the site's shards: every file by its hash, then the expectation suite `shards`.

    Returns:
        Results for the update's manifest: expectation, column, observed, limit, success.

    Raises:
        DataError: a shard is missing or corrupt, or an expectation failed; the message has the observed value.
    """
    log = _log(runtime, t, view.name)
    with log.step("validate"), phase(log, "validate") as stopwatch:
        result = runtime.launcher.run(
            partial(entry.check_shards, view, _birth(view.federation).tokenizer_sha256),
            label=_label(view, t),
            timeout=VALIDATION_TIMEOUT,
            log_path=_log_path(view),
            on_start=stopwatch.restart,
        )
        _note_restart(log, "validate")
        return [asdict(check) for check in result.checks]


@restarted(task_run_name="{view.name} / train", tags=[f"{STEP}train"])
def train(runtime: Runtime, view: SiteView, t: int, attempt: int = 1) -> "Trained | None":
    """Train the global model of round t-1 for H local steps, in a child process.

    Returns:
        The trained update, in the site's private state; None if the store already has the site's update.
    """
    logger, log = get_run_logger(), _log(runtime, t, view.name)
    run = run_of(view.federation)
    done = is_done(run, view, t, attempt)
    if done is not None:
        logger.info("the update of round %d is already committed (attempt %d): nothing to train", t, done.attempt)
        log.append(Kind.STEP_FINISHED, step="train", figures=_figures(done))
        return None
    with log.step("train") as out:
        if why := superseded(run, view, t):
            log.append(Kind.UPDATE_SUPERSEDED, step="train", why=why)
        with phase(log, "download"):
            job = _job(runtime, view, t)
        stopwatch, encoding = Stopwatch(), 0.0
        with EarlyUpload(view, t, job.attempt) as early:
            try:
                trained = runtime.launcher.run(
                    partial(entry.train, job),
                    label=_label(view, t),
                    timeout=view.federation.rounds.deadline,
                    on_report=_Progress(log, job.view.steps, early),
                    log_path=_log_path(view),
                    on_start=stopwatch.restart,
                )
                encoding = trained.seconds.get("encode", 0.0)
            finally:
                append_spans(log, *stopwatch.split("train", "encode", encoding))
            if job.announce:
                with phase(log, "upload"):
                    early.wait()
        for note in trained.notes:
            log.add(note, step="train")
        _note_restart(log, "train")
        for text in incidents(log.events()).get(view.name, []):
            logger.warning(text)
        out.update(_figures(trained))
        logger.info("trained %d tokens, mean loss %.4f", trained.tokens, trained.metrics["train_loss"])
        return trained


@task(
    task_run_name="{view.name} / upload",
    tags=[f"{STEP}upload"],
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
)
def upload(
    runtime: Runtime,
    view: SiteView,
    t: int,
    trained: "Trained | None",
    checks: list[dict[str, Any]],
) -> None:
    """Upload the update's shards, then commit its manifest."""
    if trained is None:
        return
    log = _log(runtime, t, view.name, trained.attempt)
    with log.step("upload") as out, phase(log, "upload"):
        _note_restart(log, "upload")
        events = log.events()
        spans, notes = spans_of(events).get(view.name, []), incidents(events).get(view.name, [])
        manifest = upload_update(run_of(view.federation), view, t, trained, spans, checks, notes)
        out.update(bytes=sum(entry.bytes for entry in (*manifest.files, *manifest.key_layers)))
        log.append(Kind.UPDATE_COMMITTED, bytes=out["bytes"])


@restarted(task_run_name="{view.name} / evaluate", tags=[f"{STEP}evaluate"])
def evaluate(runtime: Runtime, view: SiteView, t: int, model: list[FileEntry]) -> dict[str, float]:
    """Loss and perplexity of a global model on the site's held-out text."""
    log, of = _log(runtime, t, view.name), model_sha256(model)
    with log.step("evaluate", model=of) as out, phase(log, "evaluate") as stopwatch:
        files = [str(path) for path in _model_files(view, t, model)]
        scores = runtime.launcher.run(
            partial(entry.evaluate, view, files, runtime.launcher.threads),
            label=_label(view, t),
            timeout=view.federation.rounds.evaluation_deadline,
            log_path=_log_path(view),
            on_start=stopwatch.restart,
        )
        commit_evaluation(run_of(view.federation), t, view.name, model, scores)
        _note_restart(log, "evaluate", model=of)
        out.update(scores)
        return scores


def cancel(runtime: Runtime, view: SiteView, t: int) -> None:
    """End the child process of this site and round, if any."""
    runtime.launcher.cancel(_label(view, t))


def _log(runtime: Runtime, t: int, site: str, attempt: int = 0) -> Log:
    """The log of the site's own events in a round."""
    return runtime.log.at(t, site, attempt).by(f"site:{site}")


def _note_restart(log: Log, step: str, **model: str) -> None:
    """Log that the calling task was restarted, if it was."""
    count = task_run.run_count or 1
    if count > 1:
        log.append(Kind.STEP_RESTARTED, step=step, count=count, **model)


def _figures(trained: "Trained | UpdateManifest") -> dict[str, float]:
    return {"loss": trained.metrics["train_loss"], "tokens": trained.tokens}


def _label(view: SiteView, t: int) -> str:
    return f"{view.federation.run}/{t}/{view.name}"


def _log_path(view: SiteView) -> Path:
    return view.state_dir / "log" / "training.log"


def _birth(federation: Federation) -> RunManifest:
    birth = run_of(federation).run_manifest()
    if birth is None:
        raise PhotonError(f"run '{federation.run}' is not open yet; start its first round, which opens it")
    return birth


def _model_files(view: SiteView, t: int, model: list[FileEntry]) -> list[Path]:
    """Local paths of a model of round t. Missing files are downloaded and verified."""
    cache = view.cache_dir / "model" / view.federation.run
    return fetch_model(run_of(view.federation), t, model, cache, view.federation.aggregation.connections)


def _job(runtime: Runtime, view: SiteView, t: int) -> "LocalJob":
    from photon_core.training.entering import enter_best
    from photon_core.training.job import LocalJob

    run = run_of(view.federation)
    base = run.round(t - 1)
    if base is None:
        raise PhotonError(f"round {t} cannot start: round {t - 1} of run '{view.federation.run}' is not committed")
    moments: list[FileEntry] = []
    if view.local.optimizer_state == "average":
        model, optimizer = view.federation.model, view.local.optimizer.name
        moments = moments_for(base.moments, model, optimizer, base.key_layers)
    attempt = next_attempt(run, t, view.name)
    committed = _model_files(view, t - 1, base.download or base.model)
    theta = enter_best(run, view, t, attempt, committed, partial(_losses, runtime, view, t))
    return LocalJob(
        view=view,
        round=t,
        attempt=attempt,
        base_files=[str(path) for path in theta.files],
        base_sha256=base.model_sha256,
        moment_files=[str(path) for path in _model_files(view, t - 1, moments)],
        announce=not run.store.is_local,  # in a local store an upload is only a link
        global_step=base.global_step,
        resume=last_contribution(run, view.name, t),
        threads=runtime.launcher.threads,
        behind=base.behind,
        entry_sha256=theta.sha256,
        entry=theta.attention,
    )


def _losses(runtime: Runtime, view: SiteView, t: int, models: "Mapping[str, Entry]") -> dict[str, float]:
    """The loss of each model on the site's held-out text, as committed. A child process computes missing ones."""
    run, name = run_of(view.federation), view.name
    missing = [one for one in models.values() if evaluation(run, t, name, one.entries) is None]
    if missing:
        files = [[str(path) for path in one.files] for one in missing]
        found = runtime.launcher.run(
            partial(entry.evaluate_each, view, files, runtime.launcher.threads),
            label=_label(view, t),
            timeout=view.federation.rounds.evaluation_deadline,
            log_path=_log_path(view),
        )
        for one, scores in zip(missing, found, strict=True):
            commit_evaluation(run, t, name, one.entries, scores)
    return {option: (evaluation(run, t, name, one.entries) or {})["loss"] for option, one in models.items()}


class _Progress:
    """Forwards a child's reports: finished shards to the store, steps to this process's listeners at once and to
    Prefect every few seconds."""

    def __init__(self, log: Log, steps: int, early: EarlyUpload) -> None:
        self.log, self.steps, self.early = log, steps, early
        self.logger = get_run_logger()
        self.sent = time.monotonic()
        self.artifact: Any = None
        self.away = False

    def __call__(self, report: dict[str, Any]) -> None:
        if "file" in report:
            self.early.put(Path(report["file"]))
            return
        self.log.append(Kind.STEP_PROGRESS, step="train", figures=report)
        now = time.monotonic()
        if now - self.sent < REPORT_SECONDS and report["step"] < self.steps:
            return
        self.sent = now
        self._draw(100.0 * report["step"] / self.steps)
        self.logger.info(
            "step %d of %d, loss %.4f, %.0f tokens/s",
            report["step"], self.steps, report["loss"], report["tokens_per_second"],
        )  # fmt: skip

    def _draw(self, percent: float) -> None:
        """Update the bar in the Prefect UI. Training continues if the server is unreachable, with one warning an
        outage."""
        try:
            if self.artifact is None:
                what = f"{self.log.member}, round {self.log.round}: local steps"
                self.artifact = create_progress_artifact(percent, description=what)
            else:
                update_progress_artifact(self.artifact, percent)
            self.away = False
        except Exception as error:  # the client's connection raises its own errors
            if not self.away:
                why = told(error)
                self.logger.warning("the Prefect server does not accept progress; training continues: %s", why)
            self.away = True


@task(task_run_name="{view.name} / prepare", cache_policy=NO_CACHE)
def prepare(view: SiteView) -> str:
    """Tokenise, check and pack the site's text. Returns a line with the numbers of documents and tokens.

    Raises:
        DataError: text cannot be read, or does not meet an expectation.
    """
    from photon_core.data.prepare import prepare_site

    manifest = prepare_site(view)
    return f"{manifest.train_documents} documents, {manifest.train_tokens} tokens to train on"
