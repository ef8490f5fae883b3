"""One round of federated training (Photon, Algorithm 1):

    C       <- sample K of P sites
    for each site k in C, in parallel:
        theta_k <- validate data, train H local steps from theta, upload the update
    theta'  <- ServerOpt(theta, weighted mean of theta - theta_k)
    evaluate theta' on every site's held-out text; if it diverged, retry ServerOpt with a lower learning rate
    commit theta'

A member may be a federation. It does its part by its own rounds (WorldLM, Algorithm 1): `fit` below.

    B, K    <- enter with the parent's backbone B; attend over own, parent's and routed key layers K
    for each round of a call:  B, K <- a round, as above, over its own members
    return the change of B, and K

Embedded, the sites' steps are tasks of this flow run. Deployed, each site's steps are a flow run on the site's
work pool, and this flow run shows a task for it. In both cases the outcome is read from the store.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.cancellation import cancel_call, cancel_sites
from flows.leases import outlive_leases
from flows.site import failure, site_steps
from flows.start import start_at_site
from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.choice import UNCHOSEN
from photon_core.aggregation.claims import believed
from photon_core.aggregation.fit import Call, call_of, rounds_to_make
from photon_core.aggregation.gather import usable
from photon_core.aggregation.round import alternatives
from photon_core.aggregation.routing import has_residuals
from photon_core.aggregation.tree import regions
from photon_core.errors import FederationError
from photon_core.evidence.events import Kind
from photon_core.evidence.metrics import show
from photon_core.run.birth import as_born, as_entered
from photon_core.run.history import remarks
from photon_core.run.members import Member, SiteMember, active, member, members, world_of
from photon_core.run.members import member as as_member
from photon_core.run.run import run_of
from photon_core.run.updates import next_attempt
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest
from schemas.sections.worldlm import AUTO
from tasks import coordinator
from tasks import federation as below
from tasks import site as steps
from tasks.remote import dispatch
from tasks.remote.present import COORDINATOR, Present, own_file
from tasks.remote.waiting import Limits, Waiting, tell_state, wait_for, watching
from tasks.runtime import Runtime, runtime_of
from tasks.tags import STEP

STOP_SECONDS = 30.0  # timeout for a site's tasks to end after its child process is stopped

outlive_leases()

SiteFutures = dict[str, Mapping[str, PrefectFuture]]


def _flow_run_name() -> str:
    arguments = flow_run.parameters
    federation, t = arguments["federation"], arguments["t"]
    run = federation["run"] if isinstance(federation, dict) else federation.run
    return f"{run} round {t}" if t else f"{run} next round"


@flow(
    name="federated-round",
    flow_run_name=_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=1024),
    on_cancellation=[cancel_sites],
)
def federated_round(federation: Federation, t: int | None = None, deployed: bool = False) -> State:
    """Advance the global model by one round.

    Args:
        federation: federation file.
        t: number of the round, from 1; default: the one after the latest committed round.
        deployed: flag: each site's worker does its part.

    Raises:
        QuorumMissed: too few sites committed a usable update in time; the message has the reason of each.
        StoreConflict: another coordinator committed this round first.
    """
    federation, edited = own_file(federation, COORDINATOR)
    with runtime_of(federation) as runtime:
        if t is None:
            federation = start_at_site(runtime, federation, deployed)
        t = coordinator.open_round(runtime, federation, t)
        if t is None:  # a schedule still fires when the run is complete
            return Completed(
                message=f"all {federation.rounds.count} rounds are committed. To continue, raise rounds.count"
            )
        federation = as_born(run_of(federation), federation)
        manifest, waited = coordinator.committed_before(runtime, federation, t), ""
        if manifest is None:
            manifest, waited = _round(runtime, federation, t, deployed)
            if federation.trackers:
                coordinator.track(runtime, federation, manifest)
        if flow_run.parent_flow_run_id is None:  # else the report is written while the next round runs
            runtime.reports.finish()
    return Completed(message=_message(manifest, [waited, edited]))


def _round(runtime: Runtime, federation: Federation, t: int, deployed: bool) -> tuple[RoundManifest, str]:
    """Do the round. Returns its manifest, and which sites it waited for in vain."""
    opened, clock = time.time(), time.monotonic()
    federation, sampled, left_out, waited = _train(runtime, federation, t, deployed)
    seconds = {"sites": time.monotonic() - clock}

    clock = time.monotonic()
    bad = _regions(runtime, federation, t, sampled)
    candidate = coordinator.aggregate(runtime, federation, t, sampled, left_out, bad)
    seconds["aggregate"] = time.monotonic() - clock

    clock = time.monotonic()
    candidate, evaluations, not_evaluated = _scored(runtime, federation, candidate, deployed)
    while coordinator.needs_retry(federation, candidate, evaluations):
        candidate = coordinator.apply_again(runtime, federation, candidate, evaluations)
        candidate, evaluations, not_evaluated = _scored(runtime, federation, candidate, deployed)
    seconds["evaluate"] = time.monotonic() - clock

    for site in left_out.keys() & candidate.updates.keys():
        runtime.log.at(t, site).append(Kind.UPDATE_LATE, why=left_out[site])
    round_log = RoundLog(sampled, evaluations, not_evaluated, seconds, opened)
    return coordinator.publish(runtime, federation, candidate, round_log), waited


def _train(
    runtime: Runtime, federation: Federation, t: int, deployed: bool
) -> tuple[Federation, list[str], dict[str, str], str]:
    """Have the sampled sites train. If the file was edited meanwhile, repeat with its new settings for all.

    Returns:
        the file for the rest of the round, the sampled sites, site -> why it has no update, and which sites the
        round waited for in vain.
    """
    present, opened = Present(federation, follow=deployed), time.time()

    def limits() -> Limits:
        rounds = present.look().rounds
        return Limits(present.federation.quorum, opened + rounds.deadline, rounds.grace)

    while True:
        federation = present.look(fresh=True)
        sampled = coordinator.sample(federation, t)
        if has_residuals(federation, t):
            coordinator.send_residuals(runtime, federation, t, sampled)
        with watching(runtime.log) as waiting:
            if deployed:
                futures = _ask(t, sampled, present, opened, waiting)
            else:
                futures = _submit(runtime, federation, t, sampled)
            left_out, waited = _wait(runtime, federation, t, futures, limits, waiting)
        if present.look(fresh=True) == federation:
            return federation, sampled, left_out, waited


def _ask(t: int, sampled: list[str], present: Present, opened: float, waiting: Waiting) -> SiteFutures:
    """Dispatch each site's part to the site's worker."""
    federation, futures = present.federation, SiteFutures()
    deadline, known = opened + federation.rounds.deadline, members(federation)
    for site in sampled:
        with tags(f"run:{federation.run}", f"round:{t}", f"site:{site}"):
            asked = dispatch.dispatch_round.submit(known[site], t, deadline, present=present, waiting=waiting)
            futures[site] = {"round": asked}
    return futures


def _submit(runtime: Runtime, federation: Federation, t: int, sampled: list[str]) -> SiteFutures:
    """Submit each member's part to this flow run."""
    futures, known = SiteFutures(), members(federation)
    for name in sampled:
        one = known[name]
        with tags(f"run:{federation.run}", f"round:{t}", f"site:{name}"):
            if isinstance(one, SiteMember):
                futures[name] = site_steps(runtime, one.view, t)
            else:
                futures[name] = {"fit": fit_here.submit(federation, name, t)}
    return futures


def _wait(
    runtime: Runtime,
    federation: Federation,
    t: int,
    futures: SiteFutures,
    limits: Callable[[], Limits],
    waiting: Waiting,
) -> tuple[dict[str, str], str]:
    """Wait for the sites. Returns site -> why it has no update, and which sites the round waited for in vain."""
    last = {site: list(site_futures.values())[-1] for site, site_futures in futures.items()}
    late, waited = wait_for(last, waiting, limits, tell_state)
    reasons = dict.fromkeys(late, f"not finished at the deadline of {federation.rounds.deadline:g} s")
    for site, reason in reasons.items():
        _cancel(runtime, member(federation, site), t)
        waiting.end(site, reason)
    wait([last[site] for site in late], timeout=STOP_SECONDS)
    for site, site_futures in futures.items():
        if site not in reasons and (reason := failure(site_futures)):
            reasons[site] = reason
    return reasons, waited


def _cancel(runtime: Runtime, one: Member, t: int) -> None:
    """End the child processes of a member's part of round t that this process has started."""
    if isinstance(one, SiteMember):
        steps.cancel(runtime, one.view, t)
        return
    with suppress(FederationError):  # its file was edited, and names nobody any more
        for _, node in world_of(one.federation, one.name).nodes():
            runtime.launcher.cancel_below(f"{node.federation.run}/")


def _regions(runtime: Runtime, federation: Federation, t: int, sampled: list[str]) -> dict[str, str]:
    """Above `aggregation.tree_above` sites: compute every region's mean, then compare. Returns bad updates.

    `coordinator.aggregate` does the work of a region whose task fails, and reports the failure.
    """
    bad: dict[str, str] = {}
    for name in ("average", "compare"):
        futures = [
            coordinator.aggregate_region.submit(runtime, federation, t, sampled, region, name, dict(bad))
            for region in regions(federation.aggregation, sampled)
        ]
        wait(futures)
        for future in futures:
            if future.state.is_completed():
                bad |= future.result()
    return bad


def _scored(
    runtime: Runtime, federation: Federation, candidate: Candidate, deployed: bool
) -> tuple[Candidate, dict[str, dict[str, float]], dict[str, str]]:
    """Evaluate a candidate as `_evaluate`; with `temperature: auto`, all alternatives, and take the best."""
    found = alternatives(run_of(federation), federation, candidate)
    scored = {option: _evaluate(runtime, federation, one.t, one.sent, deployed) for option, one in found.items()}
    if len(found) > 1:
        members = {option: set(scores) for option, (scores, _) in scored.items()}
        candidate = coordinator.choose(federation, found, members)
    return candidate, *scored.get(candidate.key_layers.chosen, scored[UNCHOSEN])


def _evaluate(
    runtime: Runtime, federation: Federation, t: int, model: list[FileEntry], deployed: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Evaluate a model of round t on active members' held-out text. Returns scores, and why some are missing."""
    rounds = federation.rounds
    deadline = time.time() + rounds.evaluation_deadline
    futures: dict[str, PrefectFuture] = {}
    with watching(runtime.log) as waiting:
        for one in active(federation):
            with tags(f"run:{federation.run}", f"round:{t}", f"site:{one.name}"):
                if deployed:
                    futures[one.name] = dispatch.dispatch_evaluation.submit(one, t, model, deadline, waiting)
                elif isinstance(one, SiteMember):
                    futures[one.name] = steps.evaluate.submit(runtime, one.view, t, model)
                else:
                    futures[one.name] = evaluate_here.submit(federation, one.name, t, model)
        limits = Limits(min(federation.quorum, len(futures)), deadline, rounds.grace)
        wait_for(futures, waiting, lambda: limits, tell_state)
        failures = {site: reason for site, future in futures.items() if (reason := failure({"evaluate": future}))}
    return {site: future.result() for site, future in futures.items() if site not in failures}, failures


@flow(name="fit", flow_run_name="{member} round {t}", on_cancellation=[cancel_call])
def fit(federation: Federation, member: str, t: int, attempt: int = 1, deployed: bool = False) -> State:
    """A member that is a federation does its part of its parent's round t: Fit(q) of WorldLM's Algorithm 1.

    Args:
        federation: file of the parent.
        member: name of the federation in that file.
        t: number of the parent's round, from 1.
        attempt: number of the attempt; enters and trains unless its contribution is committed.
        deployed: flag: this flow run is at the member, whose own Prefect server makes the rounds.
    """
    child, federation = below.files(federation, member, deployed)
    above, one = run_of(federation), as_member(federation, member)
    if usable(above, one, t, attempt) is not None:
        return Completed(
            message=f"{member}: the contribution to round {t} of {federation.run} was committed before"
        )
    attempt = max(attempt, next_attempt(above, t, member))  # one that cannot be used is made again
    call = call_of(federation, member, t, attempt)
    with tags(f"run:{child.run}"), runtime_of(child) as runtime:
        entry = below.enter(runtime, child, call, _tried(runtime, child, call, deployed))
        if deployed:
            below.train_there(runtime, child, call, entry, time.time() + federation.rounds.deadline)
        else:
            child = as_entered(child, entry)
            for n in rounds_to_make(run_of(child), child, entry):
                federated_round(child, n)
        below.contribute(runtime, child, call, entry)
    return Completed(message=f"{member}: the contribution to round {t} of {federation.run} is committed")


def _tried(runtime: Runtime, child: Federation, call: Call, deployed: bool) -> dict[str, float]:
    """With `temperature: auto`, the losses of the models with which the child could enter."""
    if child.worldlm is None or child.worldlm.temperature != AUTO:
        return {}
    models = below.trials(runtime, child, call)
    for model in models.values():
        if deployed:
            deadline = time.time() + child.rounds.evaluation_deadline
            below.evaluate_there(runtime, child, call.ref.run, call.ref.round, model, deadline)
        else:
            evaluate_members(child, *model)
    return below.losses(child, models)


@flow(name="fit-evaluate", flow_run_name="{member} evaluates round {t}", on_cancellation=[cancel_call])
def fit_evaluate(
    federation: Federation, member: str, t: int, model: list[FileEntry], deployed: bool = False
) -> dict[str, float]:
    """A member that is a federation has its own members evaluate a model of its parent's round t.

    Raises:
        PhotonError: no member has scores.
    """
    child, federation = below.files(federation, member, deployed)
    with tags(f"run:{child.run}"), runtime_of(child) as runtime:
        candidate = below.receive(child, federation, t, model)
        if deployed:
            deadline = time.time() + federation.rounds.evaluation_deadline
            below.evaluate_there(runtime, child, federation.run, t, candidate, deadline)
        else:
            evaluate_members(child, *candidate)
        return below.report_scores(child, candidate, federation, t, model)


@flow(name="evaluate-members", flow_run_name="{federation.run} evaluates a model of its parent")
def evaluate_members(federation: Federation, t: int, model: list[FileEntry], deployed: bool = False) -> None:
    """All members of a federation evaluate a model of its parent. Their mean is committed in the own store.

    Args:
        federation: federation file.
        t: number of the federation's open round, whose folder holds the files.
        model: files of the model.
        deployed: flag: each site's worker does its part.

    Raises:
        PhotonError: no member has scores.
    """
    federation, _ = own_file(federation, COORDINATOR)
    with tags(f"run:{federation.run}"), runtime_of(federation) as runtime:
        scores, failures = _evaluate(runtime, federation, t, model, deployed)
        below.commit_scores(federation, t, model, believed(federation, scores), failures)


@task(task_run_name="{member} / fit", tags=[f"{STEP}fit"], cache_policy=NO_CACHE)
def fit_here(federation: Federation, member: str, t: int) -> None:
    """`fit` in this process."""
    fit(federation, member, t)


@task(task_run_name="{member} / evaluate", tags=[f"{STEP}evaluate"], cache_policy=NO_CACHE)
def evaluate_here(federation: Federation, member: str, t: int, model: list[FileEntry]) -> dict[str, float]:
    """`fit_evaluate` in this process."""
    return fit_evaluate(federation, member, t, model)


def _message(manifest: RoundManifest, more: list[str]) -> str:
    """One line for the flow run's state: result, excluded sites with reasons, sites that the round waited for."""
    if manifest.kind != "train":
        return ". ".join(remarks(manifest))
    text = f"round {manifest.round}: {len(manifest.updates)} of {len(manifest.sampled)} sites"
    if "perplexity" in manifest.metrics:
        text += f", perplexity {show('perplexity', manifest.metrics['perplexity'])}"
    return ". ".join([text, *remarks(manifest), *filter(None, more)])
