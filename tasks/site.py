"""A site's steps in a round: validate its shards, train H local steps, upload the update; and evaluate."""

import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from photon_core.aggregation.attempts import is_done, superseded
from photon_core.aggregation.moments import moments_for
from photon_core.data.paths import cache_dir, state_dir
from photon_core.errors import Cancelled, ChildFailed, DeadlinePassed, Killed, PhotonError, StoreUnavailable
from photon_core.evidence.evaluations import commit_evaluation
from photon_core.evidence.timeline import Begin, Spans
from photon_core.run.model_cache import fetch_model
from photon_core.run.run import run_of
from photon_core.run.updates import last_contribution, next_attempt
from photon_core.training import entry
from photon_core.update.upload import EarlyUpload, upload_update
from schemas.federation import Federation
from schemas.manifests import FileEntry, RunManifest
from schemas.server_errors import told
from tasks.incidents import INCIDENTS, starts
from tasks.processes import launcher
from tasks.progress import emit, step
from tasks.tags import STEP

if TYPE_CHECKING:
    from photon_core.training.job import LocalJob
    from photon_core.update.trained import Trained

REPORT_SECONDS = 5.0  # between two progress updates in the Prefect UI
VALIDATION_TIMEOUT = 3600.0
AGAIN_SECONDS = [2.0, 2.0, 10.0, 30.0, 60.0]  # before each new start of a step whose process was killed
KILLED = len(AGAIN_SECONDS)

SPANS = Spans()  # what the sites' steps in this process did when: a site's own into its update's manifest


def again(_task: Any, run: Any, state: Any) -> bool:
    """Try once more what broke or missed the store, and up to KILLED times what was killed; not what was refused,
    cancelled or too late."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, Killed):
        return True
    if isinstance(error, ChildFailed):
        once_more = not isinstance(error, Cancelled | DeadlinePassed)
    else:
        once_more = isinstance(error, StoreUnavailable) or not isinstance(error, PhotonError)
    return once_more and run.run_count <= 1


# a task whose killed or broken process is started again
restarted = partial(
    task, cache_policy=NO_CACHE, retries=KILLED, retry_delay_seconds=AGAIN_SECONDS, retry_condition_fn=again
)


@restarted(task_run_name="{site} / start", tags=[f"{STEP}start"])
def start(federation: Federation, site: str) -> None:
    """Upload the checkpoint that the site holds and the run starts from, as a model of ours.

    Raises:
        FederationError: it is not of the file's model.
    """
    with step(0, "start", site), tempfile.TemporaryDirectory(prefix="photon-") as folder:
        launcher().run(
            partial(entry.upload_start, federation, site, Path(folder)),
            label=_label(federation, 0, site),
            timeout=federation.rounds.deadline,
            log_path=_log(federation, site),
        )


@restarted(task_run_name="{site} / validate", tags=[f"{STEP}validate"])
def validate(federation: Federation, site: str, t: int) -> list[dict[str, Any]]:
    """Check the site's shards: every file by its hash, then the expectation suite `shards`.

    Returns:
        What was checked, for the update's manifest: expectation, column, observed, limit, success.

    Raises:
        DataError: a shard is missing or corrupt, or an expectation failed (named, with the observed value).
    """
    with step(t, "validate", site), SPANS.span((federation.run, t, site), "validate") as begin:
        result = launcher().run(
            partial(entry.check_shards, federation, site, _birth(federation).tokenizer_sha256),
            label=_label(federation, t, site),
            timeout=VALIDATION_TIMEOUT,
            log_path=_log(federation, site),
            on_start=begin,
        )
        INCIDENTS.put((federation.run, t, site), "validate", starts("validation"))
        return [asdict(check) for check in result.checks]


@restarted(task_run_name="{site} / train", tags=[f"{STEP}train"])
def train(federation: Federation, site: str, t: int, attempt: int = 1) -> "Trained | None":
    """Train the global model of round t-1 for H local steps, in a child process.

    Returns:
        What was trained, in the site's private state; None if the store has the site's update already.
    """
    logger = get_run_logger()
    run = run_of(federation)
    done = is_done(run, federation, t, site, attempt)
    if done is not None:
        logger.info("the update of round %d is committed already (attempt %d): nothing to train", t, done.attempt)
        emit(t, "train", "finished", site, loss=done.metrics["train_loss"], tokens=done.tokens)
        return None
    key = (federation.run, t, site)
    why = superseded(run, federation, t, site)
    repeated = [f"{why}: it was trained again"] if why else []
    with step(t, "train", site) as out:
        with SPANS.span(key, "download"):
            job = _job(federation, site, t)
        begin, encoding = Begin(), 0.0
        with EarlyUpload(federation, site, t, job.attempt) as early:
            try:
                trained = launcher().run(
                    partial(entry.train, job),
                    label=_label(federation, t, site),
                    timeout=federation.rounds.deadline,
                    on_report=_Progress(site, t, job.steps, early),
                    log_path=_log(federation, site),
                    on_start=begin,
                )
                encoding = trained.seconds.get("encode", 0.0)
            finally:
                SPANS.add(key, *begin.split("train", "encode", encoding))
            if job.announce:
                with SPANS.span(key, "upload"):
                    early.wait()
        notes = [*INCIDENTS.pop(key), *repeated, *trained.notes, *starts("local training")]
        trained = replace(trained, notes=notes)
        for note in trained.notes:
            logger.warning(note)
        out.update(loss=trained.metrics["train_loss"], tokens=trained.tokens)
        logger.info("trained %d tokens, mean loss %.4f", trained.tokens, trained.metrics["train_loss"])
        return trained


@task(
    task_run_name="{site} / upload",
    tags=[f"{STEP}upload"],
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
)
def upload(
    federation: Federation, site: str, t: int, trained: "Trained | None", checks: list[dict[str, Any]]
) -> None:
    """Put the update's shards into the store, then commit its manifest."""
    if trained is None:
        return
    key = (federation.run, t, site)
    with step(t, "upload", site) as out, SPANS.span(key, "upload"):
        spans = SPANS.of(key)
        trained = replace(trained, notes=[*trained.notes, *starts("the upload")])
        manifest = upload_update(run_of(federation), federation, site, t, trained, spans, checks)
        out.update(bytes=sum(entry.bytes for entry in manifest.files))


@restarted(task_run_name="{site} / evaluate", tags=[f"{STEP}evaluate"])
def evaluate(federation: Federation, site: str, t: int, model: list[FileEntry]) -> dict[str, float]:
    """Loss and perplexity of a global model on the site's held-out text."""
    with step(t, "evaluate", site) as out, SPANS.span((federation.run, t, site), "evaluate") as begin:
        files = _model_files(federation, site, t, model)
        scores = launcher().run(
            partial(entry.evaluate, federation, site, files, launcher().threads),
            label=_label(federation, t, site),
            timeout=federation.rounds.evaluation_deadline,
            log_path=_log(federation, site),
            on_start=begin,
        )
        commit_evaluation(run_of(federation), t, site, model, scores)
        INCIDENTS.put((federation.run, t, site), f"evaluate {model[0].sha256}", starts("evaluation"))
        out.update(scores)
        return scores


def cancel(federation: Federation, site: str, t: int) -> None:
    """End whatever child process works for this site and round."""
    launcher().cancel(_label(federation, t, site))


def _label(federation: Federation, t: int, site: str) -> str:
    return f"{federation.run}/{t}/{site}"


def _log(federation: Federation, site: str) -> Path:
    return state_dir(federation, site) / "log" / "training.log"


def _birth(federation: Federation) -> RunManifest:
    birth = run_of(federation).birth()
    if birth is None:
        raise PhotonError(f"run '{federation.run}' is not open yet: its first round opens it")
    return birth


def _model_files(federation: Federation, site: str, t: int, model: list[FileEntry]) -> list[str]:
    """Local paths of a model of round t, downloaded and verified where they are not at hand."""
    cache = cache_dir(federation, site) / "model" / federation.run
    found = fetch_model(run_of(federation), t, model, cache, federation.aggregation.connections)
    return [str(path) for path in found]


def _job(federation: Federation, site: str, t: int) -> "LocalJob":
    from photon_core.training.job import LocalJob

    run = run_of(federation)
    base = run.round(t - 1)
    if base is None:
        raise PhotonError(f"round {t} cannot start: round {t - 1} of run '{federation.run}' is not committed")
    moments: list[FileEntry] = []
    if federation.local.optimizer_state == "average":
        moments = moments_for(base.moments, federation.model, federation.local.optimizer.name)
    return LocalJob(
        federation=federation,
        site=site,
        round=t,
        attempt=next_attempt(run, t, site),
        base_files=_model_files(federation, site, t - 1, base.download or base.model),
        base_sha256=base.model_sha256,
        moment_files=_model_files(federation, site, t - 1, moments),
        announce=not run.store.is_local,  # there an upload is a link
        global_step=base.global_step,
        resume=last_contribution(run, site, t),
        threads=launcher().threads,
        behind=base.behind,
    )


class _Progress:
    """Passes a child's reports on: finished shards to the store, steps to this process's listeners at once and to
    Prefect every few seconds."""

    def __init__(self, site: str, t: int, steps: int, early: EarlyUpload) -> None:
        self.site, self.t, self.steps, self.early = site, t, steps, early
        self.logger = get_run_logger()
        self.sent = time.monotonic()
        self.artifact: Any = None
        self.away = False

    def __call__(self, report: dict[str, Any]) -> None:
        if "file" in report:
            self.early.put(Path(report["file"]))
            return
        emit(self.t, "train", "running", self.site, **report)
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
        """The bar in the Prefect UI. A server that is away costs it, not the training; one warning an outage."""
        try:
            if self.artifact is None:
                what = f"{self.site}, round {self.t}: local steps"
                self.artifact = create_progress_artifact(percent, description=what)
            else:
                update_progress_artifact(self.artifact, percent)
            self.away = False
        except Exception as error:  # of the client's connection, with kinds of its own
            if not self.away:
                why = told(error)
                self.logger.warning("the Prefect server does not take the progress; training goes on: %s", why)
            self.away = True


@task(task_run_name="{site} / prepare", cache_policy=NO_CACHE)
def prepare(federation: Federation, site: str) -> str:
    """Tokenise, check and pack the site's text. Returns a line that says what there is.

    Raises:
        DataError: text that cannot be read, or that an expectation refuses.
    """
    from photon_core.data.prepare import prepare_site

    manifest = prepare_site(federation, site)
    return f"{manifest.train_documents} documents, {manifest.train_tokens} tokens to train on"
