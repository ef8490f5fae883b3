"""The steps of a federation that is a member of another (WorldLM, Fit): enter, contribute, report scores."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from photon_core.aggregation import fit
from photon_core.aggregation.fit import Call
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import PhotonError
from photon_core.evidence.evaluations import commit_evaluation
from photon_core.evidence.events import Kind
from photon_core.evidence.metrics import perplexity
from photon_core.run.opening import open_run
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import run_of
from photon_core.run.updates import files_of_update
from photon_core.tensors.shards import copy_files
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest
from tasks.runtime import Runtime
from tasks.site import restarted
from tasks.tags import STEP


@restarted(task_run_name="enter", tags=[f"{STEP}enter"])
def enter(runtime: Runtime, child: Federation, call: Call) -> RoundManifest:
    """Commit the child's entry into the parent's round. Opens the child's run if it is not open."""
    run = run_of(child)
    with runtime.log.step("enter"), tempfile.TemporaryDirectory(prefix="photon-") as name:
        folder = Path(name)
        tokenizer = load_tokenizer(child.tokenizer).sha256
        open_run(run, child, tokenizer, lambda: fit.initial_of(call, folder / "initial"))
        return fit.enter(run, child, call, folder)


@task(task_run_name="contribute", tags=[f"{STEP}contribute"], cache_policy=NO_CACHE)
def contribute(runtime: Runtime, child: Federation, call: Call, entry: RoundManifest) -> None:
    """Commit the child's contribution to the parent's round."""
    with runtime.log.step("contribute") as out:
        update = fit.contribute(run_of(child), child, call, entry)
        out.update(bytes=sum(entry.bytes for entry in files_of_update(update)))
        runtime.log.at(update.round, update.site, update.attempt).append(Kind.UPDATE_COMMITTED, bytes=out["bytes"])


def report_scores(
    parent: Federation,
    member: str,
    t: int,
    model: list[FileEntry],
    scores: Mapping[str, Mapping[str, float]],
    failures: Mapping[str, str],
) -> dict[str, float]:
    """Commit the mean of the members' scores, weighted by held-out tokens, in the parent's round, and return it.

    Raises:
        PhotonError: there are no scores; the message gives the reasons.
    """
    tokens = sum(one["tokens"] for one in scores.values())
    if not tokens:
        raise PhotonError("; ".join(f"{name}: {why}" for name, why in failures.items()) or "no member has text")
    loss = sum(one["loss"] * one["tokens"] for one in scores.values()) / tokens
    mean = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    commit_evaluation(run_of(parent), t, member, model, mean)
    return mean


@task(task_run_name="receive a candidate", tags=[f"{STEP}receive"], cache_policy=NO_CACHE)
def receive(child: Federation, parent: Federation, t: int, model: list[FileEntry]) -> tuple[int, list[FileEntry]]:
    """Copy a candidate of the parent's round t to the child's store, where the child's members can read it.

    Returns:
        number of the child's open round, whose folder holds the files, and the files.
    """
    above, run = run_of(parent), run_of(child)
    n = (run.latest() or 0) + 1
    to = Place(PlaceKind.ROUND_PART, run.run, n, part="model").path
    return n, copy_files(above.store, above.round_dir(t), model, run.store, to, "model/")
