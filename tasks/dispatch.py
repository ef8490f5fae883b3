"""Have a site's own worker do its part: create or find the flow run on its deployment, and wait for the store."""

import time
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Cancelling

from photon_core.errors import DeadlinePassed, PhotonError, printable
from photon_core.rounds import evaluation, is_done, run_of
from photon_core.spans import WHOLE
from photon_core.start import site_start
from schemas.federation import Federation
from schemas.manifests import FileEntry
from tasks.progress import step
from tasks.site import SPANS

POLL_SECONDS = 2.0
SETTLE_SECONDS = 30.0  # after a crash: a worker reports it again some 15 s later, over whatever came since
REFUSED = 409  # parameters that the deployment's schema does not admit
AWAY_SECONDS = 60.0  # beyond the deadline that a server or store which is away is waited for
AUTOMATIC_RETRIES = 2  # of a site's flow run that crashed; one that failed waits for a person


@task(task_run_name="{site} / round", cache_policy=NO_CACHE)
def dispatch_round(federation: Federation, site: str, t: int, deadline: float, attempt: int = 1) -> list[str]:
    """Return when the site's update for round t is in the store.

    Args:
        deadline: Unix time in seconds.
        attempt: an earlier attempt's update does not count.

    Returns:
        What went wrong on the way, a sentence each.

    Raises:
        DeadlinePassed: it is not; the message ends with the state of the site's flow run.
    """
    run = run_of(federation)
    with step(t, "site round", site), SPANS.span((federation.run, t, site), WHOLE):
        return _on_site(
            "site-round",
            federation,
            site,
            {"federation": federation.model_dump(mode="json"), "site": site, "t": t, "attempt": attempt},
            key=f"{federation.run}/{t}/{site}/{attempt}",
            tags=[f"round:{t}"],
            done=lambda: is_done(run, t, site, attempt) is not None,
            deadline=deadline,
        )


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
        )


@task(task_run_name="{site} / evaluate", cache_policy=NO_CACHE)
def dispatch_evaluation(
    federation: Federation, site: str, t: int, model: list[FileEntry], deadline: float
) -> dict[str, float]:
    """The site's scores of a candidate for round t. Raises DeadlinePassed as `dispatch_round` does."""
    run = run_of(federation)
    with step(t, "evaluate", site) as out, SPANS.span((federation.run, t, site), "evaluate"):
        _on_site(
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
            tags=[f"round:{t}"],
            done=lambda: evaluation(run, t, site, model) is not None,
            deadline=deadline,
        )
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
) -> list[str]:
    """Start (or find, or re-arm) the site's flow run and wait until `done`. Waits for a server that is away."""
    logger, watch = get_run_logger(), _Watch()
    with get_client(sync_client=True) as client:
        while True:
            try:
                if done():
                    return watch.incidents
                if time.time() > deadline:
                    watch.give_up(client)
                    raise DeadlinePassed(f"site '{site}' was not done at the deadline; its flow run: {watch.text}")
                if watch.run is None:
                    watch.run = _create(client, flow, federation, site, parameters, key, tags)
                    watch.begin(client, logger)
                else:
                    watch.look(client, logger)
            except PhotonError:
                raise
            except Exception as error:  # of the server or the store, each with kinds of its own: wait for both
                watch.away(error, logger)
                if time.time() > deadline + AWAY_SECONDS:
                    raise DeadlinePassed(f"site '{site}' was not done at the deadline: {watch.text}") from error
            time.sleep(POLL_SECONDS)


def _create(
    client: SyncPrefectClient,
    flow: str,
    federation: Federation,
    site: str,
    parameters: dict[str, Any],
    key: str,
    tags: list[str],
) -> FlowRun:
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    name = f"{flow}/{federation.run}-{site}"
    try:
        return run_deployment(
            name,
            client=client,
            parameters=parameters,
            timeout=0,
            idempotency_key=key,
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


class _Watch:
    """What is known of a site's flow run, and what was done about it."""

    def __init__(self) -> None:
        self.run: FlowRun | None = None
        self.text = "not created"
        self.retries = 0
        self.crashed: float | None = None
        self.incidents: list[str] = []

    def begin(self, client: SyncPrefectClient, logger: Any) -> None:
        """A flow run of an earlier try that ended without an update is armed again at once."""
        assert self.run is not None and self.run.state is not None
        self.text = _text(self.run)
        if self.run.state.is_final():
            self._rearm(client, logger)

    def look(self, client: SyncPrefectClient, logger: Any) -> None:
        """Re-arm a crashed flow run after a while; leave a failed one to a person's retry."""
        assert self.run is not None
        self.run = client.read_flow_run(self.run.id)
        assert self.run.state is not None
        text = _text(self.run)
        if text != self.text and self.run.state.is_final():
            logger.warning("the site's flow run '%s': %s", self.run.name, text)
        self.text = text
        if not self.run.state.is_crashed():
            self.crashed = None
        elif self.crashed is None:
            self.crashed = time.monotonic()
        elif time.monotonic() - self.crashed > SETTLE_SECONDS and self.retries < AUTOMATIC_RETRIES:
            self.retries += 1
            self.crashed = None
            self._rearm(client, logger)

    def away(self, error: Exception, logger: Any) -> None:
        """Take note that the Prefect server or the store does not answer; say so once."""
        text = f"the Prefect server or the store does not answer ({type(error).__name__}: {error})"[:500]
        if not self.text.startswith(text[:60]):
            logger.warning(text)
            self.incidents.append(text)
        self.text = text

    def give_up(self, client: SyncPrefectClient) -> None:
        """Cancel the flow run: what it would still upload, nobody would read."""
        if self.run is not None:
            self.run = client.read_flow_run(self.run.id)
            assert self.run.state is not None
            self.text = _text(self.run)
            if not self.run.state.is_final():
                started = self.run.state.is_running() or self.run.state.is_pending()
                ending = Cancelling() if started else Cancelled(message="the round's deadline has passed")
                client.set_flow_run_state(self.run.id, ending, force=True)

    def _rearm(self, client: SyncPrefectClient, logger: Any) -> None:
        assert self.run is not None
        self.incidents.append(f"its flow run was {self.text} and was started again")
        logger.warning("the site's flow run '%s' is %s: it is started again", self.run.name, self.text)
        client.set_flow_run_state(self.run.id, AwaitingRetry(), force=True)


def _text(flow_run: FlowRun) -> str:
    state = flow_run.state
    assert state is not None
    return f"{state.name}" + (f" ({state.message})" if state.message else "")
