"""One round of federated training (Photon, Algorithm 1):

C       <- sample K of P sites
for each site k in C, in parallel:
    theta_k <- validate data, train H local steps from theta, upload theta - theta_k
theta'  <- ServerOpt(theta, weighted mean of theta - theta_k)
evaluate theta' on every site's held-out text
commit theta'
"""

import time

from prefect import flow, tags
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.site_round import site_round
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tasks import coordinator
from tasks import site as steps

STOP_SECONDS = 30.0  # for a site's tasks to end after its child process was told to


@flow(
    name="federated-round",
    flow_run_name="{federation.run} round {t}",
    task_runner=ThreadPoolTaskRunner(max_workers=1024),
)
def federated_round(federation: Federation, t: int) -> State:
    """Advance the global model from round t-1 to round t.

    Args:
        federation: the federation file.
        t: number of the round, from 1.

    Raises:
        QuorumMissed: too few sites committed a usable update in time; every one's reason is in the message.
        StoreConflict: another coordinator committed this round first.
    """
    clock = time.monotonic()
    sampled = coordinator.sample(federation, t)
    sites = {}
    for site in sampled:
        with tags(f"run:{federation.run}", f"round:{t}", f"site:{site}"):
            sites[site] = site_round(federation, site, t)
    left_out = _wait(federation, t, sites, clock + federation.rounds.deadline)
    seconds = {"sites": time.monotonic() - clock}

    clock = time.monotonic()
    candidate = coordinator.aggregate(federation, t, sampled, left_out)
    seconds["aggregate"] = time.monotonic() - clock

    clock = time.monotonic()
    evaluations, not_evaluated = _evaluate(federation, t, candidate)
    seconds["evaluate"] = time.monotonic() - clock

    manifest = coordinator.publish(federation, candidate, sampled, evaluations, not_evaluated, seconds)
    return Completed(message=_message(manifest))


def _wait(
    federation: Federation, t: int, sites: dict[str, dict[str, PrefectFuture]], deadline: float
) -> dict[str, str]:
    """Wait until every site has ended or the deadline has passed. Returns site -> why it has no update."""
    last = {futures["upload"]: site for site, futures in sites.items()}
    late = wait(list(last), timeout=max(0.0, deadline - time.monotonic())).not_done
    for future in late:
        steps.cancel(federation, last[future], t)
    wait(list(late), timeout=STOP_SECONDS)
    reasons = {last[future]: f"not done at the deadline of {federation.rounds.deadline:g} s" for future in late}
    for site, futures in sites.items():
        if site not in reasons and (reason := _failure(futures)):
            reasons[site] = reason
    return reasons


def _failure(futures: dict[str, PrefectFuture]) -> str:
    """Why the first failed one of a site's steps failed; empty if all is well."""
    for name, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            return f"{name}: {future.state.message}"
    return ""


def _evaluate(
    federation: Federation, t: int, candidate: coordinator.Candidate
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Evaluate the candidate on every site's held-out text; a site that cannot is named with its reason."""
    futures = {}
    for site in federation.sites:
        with tags(f"run:{federation.run}", f"round:{t}", f"site:{site.name}"):
            futures[site.name] = steps.evaluate.submit(federation, site.name, t, candidate.result.model)
    failures = {site: reason for site, future in futures.items() if (reason := _failure({"evaluate": future}))}
    return {site: future.result() for site, future in futures.items() if site not in failures}, failures


def _message(manifest: RoundManifest) -> str:
    """One line for the flow run's state: what happened, and who was left out and why."""
    text = f"round {manifest.round}: {len(manifest.updates)} of {len(manifest.sampled)} sites"
    if "perplexity" in manifest.metrics:
        text += f", perplexity {manifest.metrics['perplexity']:.2f}"
    for site, reason in sorted(manifest.left_out.items()):
        text += f". Left out: {site} ({reason})"
    for site, reason in sorted(manifest.not_evaluated.items()):
        text += f". Not evaluated: {site} ({reason})"
    return text
