"""Have a site's own worker do its part: create or find the flow run on its deployment, and wait for the store."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun

from photon_core.errors import DeadlinePassed, PhotonError, StoreUnavailable, printable
from photon_core.rounds import evaluation, is_committed, run_of, wanted_attempt
from photon_core.spans import WHOLE
from photon_core.start import site_start
from schemas.federation import Federation
from schemas.manifests import FileEntry
from tasks.incidents import INCIDENTS
from tasks.progress import step
from tasks.site import SPANS
from tasks.watch import Watch

POLL_SECONDS = 2.0
REFUSED = 409  # parameters that the deployment's schema does not admit
AWAY_SECONDS = 60.0  # beyond the deadline that a server or store which is away is waited for


@task(task_run_name="{site} / round", cache_policy=NO_CACHE)
def dispatch_round(
    federation: Federation,
    site: str,
    t: int,
    deadline: float,
    attempt: int = 1,
    over: threading.Event | None = None,
) -> None:
    """Return when the site's update for round t is in the store; what went wrong on the way is in INCIDENTS.

    Args:
        deadline: Unix time in seconds.
        attempt: an earlier attempt's update does not count.
        over: of `watching`.

    Raises:
        DeadlinePassed: it is not; the message ends with the state of the site's flow run.
    """
    run = run_of(federation)
    with suppress(StoreUnavailable):  # which is waited for below
        attempt = wanted_attempt(run, t, site, attempt, lambda: _over(over, deadline))
    key = (federation.run, t, site)
    with step(t, "site round", site), SPANS.span(key, WHOLE):
        seen = _on_site(
            "site-round",
            federation,
            site,
            {"federation": federation.model_dump(mode="json"), "site": site, "t": t, "attempt": attempt},
            key=f"{federation.run}/{t}/{site}/{attempt}",
            tags=[f"round:{t}"],
            done=lambda: is_committed(run, t, site, attempt),
            deadline=deadline,
            over=over,
        )
        INCIDENTS.put(key, "round", seen)


@task(task_run_name="{site} / start", cache_policy=NO_CACHE)
def dispatch_start(federation: Federation, site: str, deadline: float) -> None:
    """Return when the model that the site holds is in the store. Raises DeadlinePassed as the round's does."""
    run = run_of(federation)
    with step(0, "start", site):
        _on_site(
            "site-start",
            federation,
            site,
            {"federation": federation.model_dump(mode="json"), "site": site},
            key=f"{federation.run}/start/{site}",
            tags=["round:0"],
            done=lambda: site_start(run, site) is not None,
            deadline=deadline,
            over=None,
        )


@task(task_run_name="{site} / evaluate", cache_policy=NO_CACHE)
def dispatch_evaluation(
    federation: Federation,
    site: str,
    t: int,
    model: list[FileEntry],
    deadline: float,
    over: threading.Event | None = None,
) -> dict[str, float]:
    """The site's scores of a candidate for round t. Raises DeadlinePassed as `dispatch_round` does."""
    run, key = run_of(federation), (federation.run, t, site)
    with step(t, "evaluate", site) as out, SPANS.span(key, "evaluate"):
        seen = _on_site(
            "site-evaluate",
            federation,
            site,
            {
                "federation": federation.model_dump(mode="json"),
                "site": site,
                "t": t,
                "model": [entry.model_dump(mode="json") for entry in model],
            },
            key=f"{federation.run}/{t}/{site}/evaluate/{model[0].sha256}",
            tags=[f"round:{t}", f"model:{model[0].sha256[:16]}"],
            done=lambda: evaluation(run, t, site, model) is not None,
            deadline=deadline,
            over=over,
        )
        INCIDENTS.put(key, f"evaluate {model[0].sha256}", [f"evaluation: {sentence}" for sentence in seen])
        scores = evaluation(run, t, site, model)
        assert scores is not None
        out.update(scores)
        return scores


def _on_site(
    flow: str,
    federation: Federation,
    site: str,
    parameters: dict[str, Any],
    key: str,
    tags: list[str],
    done: Callable[[], bool],
    deadline: float,
    over: threading.Event | None,
) -> list[str]:
    """Start (or find, or start again) the site's flow run; wait until `done`, for a server that is away, too."""
    over = over or threading.Event()
    with get_client(sync_client=True) as client:
        watch = Watch(
            lambda: _create(client, flow, federation, site, parameters, key, tags),
            lambda: _runs(client, flow, federation, site, tags),
            federation.deploy.zombie_after,
            get_run_logger(),
        )
        while True:
            try:
                if done():
                    return watch.incidents(client)
                if time.time() > deadline:
                    watch.give_up(client)
                    raise DeadlinePassed(
                        f"site '{site}' was not done at the deadline; its flow run: {watch.story()}"
                    )
                watch.look(client)
            except Exception as error:  # of the server or the store, each with kinds of its own: wait for both
                if isinstance(error, PhotonError) and not isinstance(error, StoreUnavailable):
                    raise
                watch.away(error)
                if time.time() > deadline + AWAY_SECONDS:
                    raise DeadlinePassed(f"site '{site}' was not done at the deadline: {watch.story()}") from error
            if over.wait(POLL_SECONDS):
                raise PhotonError(f"site '{site}' is not waited for any more: the round has ended")


def _over(over: threading.Event | None, deadline: float) -> bool:
    return time.time() > deadline or (over is not None and over.is_set())


@contextmanager
def watching() -> Iterator[threading.Event]:
    """For the dispatch tasks of a round: they end when this block does, also when the round is cancelled in it."""
    over = threading.Event()
    try:
        yield over
    finally:
        over.set()


def _create(
    client: SyncPrefectClient,
    flow: str,
    federation: Federation,
    site: str,
    parameters: dict[str, Any],
    key: str,
    tags: list[str],
) -> FlowRun:
    """The site's flow run, new or found by its key.

    One that was cancelled is passed over, for it cannot be armed again: Prefect's server cancels whatever a
    cancelled round has started, for as long as it is not final. So is one that crashed (see Watch).
    """
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    name = f"{flow}/{federation.run}-{site}"
    for number in itertools.count(1):
        try:
            flow_run: FlowRun = run_deployment(
                name,
                client=client,
                parameters=parameters,
                timeout=0,
                idempotency_key=key if number == 1 else f"{key}/{number}",
                tags=[f"run:{federation.run}", f"site:{site}", *tags],
            )
        except ObjectNotFound:
            raise PhotonError(f"there is no deployment '{name}'. Write: photon deploy") from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code != REFUSED:
                raise
            reason = printable(str(error.response.json().get("detail", "")), 300)
            raise PhotonError(
                f"the deployment '{name}' is of another version: it does not take these parameters ({reason}). "
                "Write: photon deploy"
            ) from None
        assert flow_run.state is not None
        if not (flow_run.state.is_cancelled() or flow_run.state.is_cancelling() or flow_run.state.is_crashed()):
            break
    return flow_run


def _runs(
    client: SyncPrefectClient, flow: str, federation: Federation, site: str, tags: list[str]
) -> list[FlowRun]:
    """The flow runs that there have been for this, oldest first."""
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[f"run:{federation.run}", f"site:{site}", *tags])
        ),
    )
    return sorted(found, key=lambda run: str(run.created))
