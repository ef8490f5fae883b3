"""The steps of a federation that is a member of another (WorldLM, Fit): enter, contribute, report scores."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from photon_core.aggregation import fit
from photon_core.aggregation.fit import Call
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import PhotonError
from photon_core.evidence.evaluations import commit_evaluation, evaluation
from photon_core.evidence.events import Kind
from photon_core.evidence.metrics import perplexity
from photon_core.run.members import world_of
from photon_core.run.opening import open_run
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import model_sha256, run_of
from photon_core.run.updates import files_of_update
from photon_core.tensors.shards import copy_files
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest
from schemas.reading.related import check_fit
from tasks.remote.follow import follow
from tasks.remote.own_server import RUNS, SCORES, OwnRequest, OwnServer, call_tag
from tasks.remote.waiting import Alone
from tasks.runtime import Runtime
from tasks.site import restarted
from tasks.tags import STEP

# Number of the child's open round, whose folder holds the files; the files.
Candidate = tuple[int, list[FileEntry]]


def files(federation: Federation, member: str, deployed: bool) -> tuple[Federation, Federation]:
    """The member's file, and its parent's as the member reads and writes the parent's store.

    Deployed, the member's file is the one on its own server. It says where the parent's store is, and with which
    credentials.

    Raises:
        FederationError: the files do not fit.
        PhotonError: the own server is not known here, or has no deployment.
    """
    if not deployed:
        return world_of(federation, member).federation, federation
    own = _own_server(member)
    child = own.file()
    check_fit(federation, member, own.place, child)
    assert child.parent is not None
    where = {"store": child.parent.store, "storage": child.parent.storage}
    return child, federation.model_copy(update=where)


def _own_server(member: str) -> OwnServer:
    server = OwnServer.of_environment()
    if server is None:
        raise PhotonError(
            f"this worker does not know the Prefect server of federation '{member}'. There, write: "
            "photon join-parent FILE --server URL, with the federation's own file"
        )
    return server


@restarted(task_run_name="enter", tags=[f"{STEP}enter"])
def enter(runtime: Runtime, child: Federation, call: Call, losses: Mapping[str, float]) -> RoundManifest:
    """Commit the child's entry into the parent's round. Opens the child's run if it is not open.

    Args:
        losses: losses of `trials`, if there are any.
    """
    run = run_of(child)
    with runtime.log.step("enter"), tempfile.TemporaryDirectory(prefix="photon-") as name:
        folder = Path(name)
        tokenizer = load_tokenizer(child.tokenizer).sha256
        open_run(run, child, tokenizer, lambda: fit.initial_of(call, folder / "initial"))
        return fit.enter(run, child, call, folder, losses)


@restarted(task_run_name="try temperatures", tags=[f"{STEP}try"])
def trials(runtime: Runtime, child: Federation, call: Call) -> dict[str, Candidate]:
    """With `temperature: auto`, the models with which the child could enter, by option; else none."""
    run = run_of(child)
    with runtime.log.step("try temperatures"), tempfile.TemporaryDirectory(prefix="photon-") as name:
        models = fit.trials(run, child, call, Path(name))
        return {option: ((run.latest() or 0) + 1, model) for option, model in models.items()}


def losses(child: Federation, models: Mapping[str, Candidate]) -> dict[str, float]:
    """The committed losses of `trials`. None if not the same members have evaluated them all."""
    assert child.parent is not None
    run, member = run_of(child), child.parent.member
    scores = {option: evaluation(run, n, member, model) or {} for option, (n, model) in models.items()}
    alike = len({one.get("tokens") for one in scores.values()}) == 1
    return {option: one["loss"] for option, one in scores.items() if alike and one}


@task(task_run_name="contribute", tags=[f"{STEP}contribute"], cache_policy=NO_CACHE)
def contribute(runtime: Runtime, child: Federation, call: Call, entry: RoundManifest) -> None:
    """Commit the child's contribution to the parent's round."""
    with runtime.log.step("contribute") as out:
        update = fit.contribute(run_of(child), child, call, entry)
        out.update(bytes=sum(entry.bytes for entry in files_of_update(update)))
        runtime.log.at(update.round, update.site, update.attempt).append(Kind.UPDATE_COMMITTED, bytes=out["bytes"])


@task(task_run_name="rounds", tags=[f"{STEP}rounds"], cache_policy=NO_CACHE)
def train_there(runtime: Runtime, child: Federation, call: Call, entry: RoundManifest, deadline: float) -> None:
    """Return when the child has trained the rounds of the call, by a flow run on its own server.

    Args:
        deadline: Unix time in seconds.

    Raises:
        DeadlinePassed: the rounds are missing at the deadline.
        PhotonError: the call is over.
    """
    run, parameters = run_of(child), {"entry": entry.round}
    tags = [call_tag(call.ref.run, call.ref.round), f"entry:{entry.round}"]
    request = OwnRequest(_own_server(call.ref.member), RUNS, parameters, tags, child.deploy.zombie_after)
    _wait(runtime, "rounds", request, lambda: not any(fit.rounds_to_make(run, child, entry)), deadline)


@task(task_run_name="evaluate", tags=[f"{STEP}evaluate"], cache_policy=NO_CACHE)
def evaluate_there(
    runtime: Runtime,
    child: Federation,
    parent: str,
    t: int,
    candidate: Candidate,
    deadline: float,
) -> None:
    """Return when the child's members have evaluated a candidate, by a flow run on its own server.

    Args:
        parent, t: run of the parent, and number of its round.
        candidate: what `receive` has returned.
        deadline: Unix time in seconds.

    Raises:
        DeadlinePassed: there are no scores at the deadline.
    """
    assert child.parent is not None
    member, (n, model) = child.parent.member, candidate
    parameters = {"t": n, "model": [entry.model_dump(mode="json") for entry in model]}
    tags = [call_tag(parent, t), f"model:{model_sha256(model)[:16]}"]
    request = OwnRequest(_own_server(member), SCORES, parameters, tags, child.deploy.zombie_after)
    _wait(runtime, "evaluate", request, lambda: evaluation(run_of(child), n, member, model) is not None, deadline)


def _wait(runtime: Runtime, step: str, request: OwnRequest, done: Callable[[], bool], deadline: float) -> None:
    """Follow a request on the own server until `done`. The state of this flow run names what has failed."""
    with runtime.log.step(step):
        waiting = Alone(deadline, runtime.log)
        follow(request, done, deadline, waiting)
        waiting.done()


def commit_scores(
    federation: Federation,
    t: int,
    model: list[FileEntry],
    scores: Mapping[str, Mapping[str, float]],
    failures: Mapping[str, str],
) -> None:
    """Commit the mean of the members' scores, weighted by held-out tokens, under the name that the parent uses.

    Raises:
        PhotonError: there are no scores; the message gives the reasons.
    """
    tokens = sum(one["tokens"] for one in scores.values())
    if not tokens:
        raise PhotonError("; ".join(f"{name}: {why}" for name, why in failures.items()) or "no member has text")
    loss = sum(one["loss"] * one["tokens"] for one in scores.values()) / tokens
    mean = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    assert federation.parent is not None
    commit_evaluation(run_of(federation), t, federation.parent.member, model, mean)


def report_scores(
    child: Federation, candidate: Candidate, parent: Federation, t: int, model: list[FileEntry]
) -> dict[str, float]:
    """Commit the child's scores of a candidate in its parent's round t, and return them.

    Raises:
        PhotonError: there are none.
    """
    assert child.parent is not None
    member, (n, files) = child.parent.member, candidate
    scores = evaluation(run_of(child), n, member, files)
    if scores is None:
        raise PhotonError(f"run '{child.run}' has no scores of the candidate of round {t} of '{parent.run}'")
    commit_evaluation(run_of(parent), t, member, model, scores)
    return scores


@task(task_run_name="receive a candidate", tags=[f"{STEP}receive"], cache_policy=NO_CACHE)
def receive(child: Federation, parent: Federation, t: int, model: list[FileEntry]) -> Candidate:
    """Copy a candidate of the parent's round t to the child's store, where the child's members can read it."""
    above, run = run_of(parent), run_of(child)
    n = (run.latest() or 0) + 1
    to = Place(PlaceKind.ROUND_PART, run.run, n, part="model").path
    return n, copy_files(above.store, above.round_dir(t), model, run.store, to, "model/")
