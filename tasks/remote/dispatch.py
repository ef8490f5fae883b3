"""Dispatch a site's part to its worker: create or find the flow run on its deployment, and wait for the store."""

import time
from contextlib import suppress
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from photon_core.aggregation.attempts import is_committed, required_attempt
from photon_core.errors import StoreUnavailable
from photon_core.evidence.evaluations import evaluation
from photon_core.evidence.timeline import WHOLE, phase
from photon_core.run.members import Member, Named
from photon_core.run.run import model_sha256, run_of
from photon_core.run.start import site_start
from schemas.manifests import FileEntry
from schemas.view import SiteView
from tasks.remote.asking import Asking
from tasks.remote.follow import follow
from tasks.remote.present import Present
from tasks.remote.waiting import Alone, Waiting
from tasks.tags import STEP


@task(task_run_name="{member.name} / round", tags=[f"{STEP}round"], cache_policy=NO_CACHE)
def dispatch_round(
    member: Member,
    t: int,
    deadline: float,
    attempt: int = 1,
    present: Present | None = None,
    waiting: Waiting | None = None,
) -> None:
    """Return when the member's update for round t is in the store. Problems during the wait are in the log.

    Args:
        member: member that trains, from the file that the round was given.
        t: number of the round.
        deadline: Unix time in seconds.
        attempt: number of the first attempt that counts.
        present: current file, with whose settings the update must be made.
        waiting: state of `watching`, with the log.

    Raises:
        DeadlinePassed: the update is missing at the deadline; the message ends with the state of the flow run.
    """
    run, file, waiting = run_of(member.federation), present or Present(member.federation), waiting or Waiting()
    first = attempt

    def over() -> bool:
        return time.time() > deadline or bool(waiting.pause(member.name, 0.0))

    with suppress(StoreUnavailable):  # the loop below waits for the store
        first = required_attempt(run, member, t, attempt, over)
    log = waiting.log.at(t, member.name)

    def parameters() -> dict[str, Any]:
        newest = required_attempt(run, Named(member.name, file.federation), t, first, over)
        return {**member.parameters, "t": t, "attempt": newest}

    def committed() -> bool:  # by the settings of a file that may no longer contain the site
        return is_committed(run, Named(member.name, file.look()), t, first)

    with log.step("site round"), phase(log, WHOLE):
        asking = Asking(member.round_flow, file, member.name, parameters, f"{t}/{member.name}", [f"round:{t}"])
        for fact in follow(asking, committed, deadline, waiting):
            log.add(fact, step="site round")


@task(task_run_name="{view.name} / start", tags=[f"{STEP}start"], cache_policy=NO_CACHE)
def dispatch_start(view: SiteView, deadline: float, present: Present, waiting: Alone) -> None:
    """Return when the site's model is in the store. Raises DeadlinePassed like `dispatch_round`."""
    run = run_of(view.federation)
    with waiting.log.at(0, view.name).step("start"):
        asking = Asking(
            "site-start", present, view.name, lambda: {"site": view.name}, f"start/{view.name}", ["round:0"]
        )
        follow(asking, lambda: site_start(run, view.name, present.look().start) is not None, deadline, waiting)
        waiting.done()


@task(task_run_name="{member.name} / evaluate", tags=[f"{STEP}evaluate"], cache_policy=NO_CACHE)
def dispatch_evaluation(
    member: Member,
    t: int,
    model: list[FileEntry],
    deadline: float,
    waiting: Waiting | None = None,
) -> dict[str, float]:
    """The member's scores of a candidate for round t. Raises DeadlinePassed like `dispatch_round`."""
    run, waiting, of = run_of(member.federation), waiting or Waiting(), model_sha256(model)
    log = waiting.log.at(t, member.name)
    files = {**member.parameters, "t": t, "model": [entry.model_dump(mode="json") for entry in model]}
    with log.step("evaluate", model=of) as out, phase(log, "evaluate"):
        present, key = Present(member.federation), f"{t}/{member.name}/evaluate/{of}"
        tags = [f"round:{t}", f"model:{of[:16]}"]
        asking = Asking(member.evaluation_flow, present, member.name, lambda: files, key, tags)
        for fact in follow(asking, lambda: evaluation(run, t, member.name, model) is not None, deadline, waiting):
            log.add(fact, step="evaluate", model=of)
        scores = evaluation(run, t, member.name, model)
        assert scores is not None
        out.update(scores)
        return scores
