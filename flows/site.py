"""Flows of a site. In a round (Algorithm 1, client k): validate -> train H local steps -> upload the update."""

from collections.abc import Mapping

from prefect import flow, tags
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, State

from flows.server_away import crashes_without_server, raise_if_server_away
from photon_core.errors import PhotonError, StoreConflict
from photon_core.evidence.events import Kind
from photon_core.formatting import printable
from photon_core.run.birth import as_born
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import FileEntry
from schemas.view import SiteView, view_of
from tasks import site as steps
from tasks.remote.present import own_file
from tasks.runtime import Runtime, runtime_of
from tasks.tags import SITE


def site_steps(runtime: Runtime, view: SiteView, t: int, attempt: int = 1) -> dict[str, PrefectFuture]:
    """Submit the site's steps to the calling flow run. Each step waits for the one before."""
    with tags(f"{SITE}{view.name}"):
        checked = steps.validate.submit(runtime, view, t)
        trained = steps.train.submit(runtime, view, t, attempt, wait_for=[checked])
        uploaded = steps.upload.submit(runtime, view, t, trained, checked)
    return {"validate": checked, "train": trained, "upload": uploaded}


@flow(name="site-round", flow_run_name="{site} round {t}")
@crashes_without_server
def site_round(federation: Federation, site: str, t: int, attempt: int = 1) -> State:
    """The same steps as a separate flow run, on the site's work pool.

    Args:
        federation: federation file.
        site: name of the site.
        t: number of the round, from 1.
        attempt: number of the attempt; the site trains unless an update of this or a later one is committed.

    Raises:
        PhotonError: a step failed; the message names the step and the reason.
        StoreConflict: this is a retry, and the round was committed without the site meanwhile.
    """
    federation, edited = own_file(federation, f"site '{site}'")
    note = f" ({edited})" if edited else ""
    if over := _over(view_of(federation, site), t):
        return Completed(message=over)
    with runtime_of(federation, f"site:{site}") as runtime:
        if edited:
            runtime.log.at(t, site).append(Kind.FLOW_RUN_RETRIED, why=edited)
        federation = as_born(run_of(federation), federation)
        if reason := failure(site_steps(runtime, view_of(federation, site), t, attempt)):
            raise PhotonError(f"site '{site}', round {t}: {reason}{note}")
    return Completed(message=f"site '{site}', round {t}: the update is committed{note}")


def _over(view: SiteView, t: int) -> str:
    """For a retry of a committed round, a message that the round has the update; empty otherwise.

    Raises:
        StoreConflict: the round was committed without the site's update, so training would be useless.
    """
    manifest = run_of(view.federation).round(t) if (flow_run.run_count or 1) > 1 else None
    if manifest is None:
        return ""
    if view.name not in manifest.updates:
        raise StoreConflict(
            f"round {t} was committed without site '{view.name}' meanwhile and cannot change: nothing is trained. "
            "The site takes part again in the next round that samples it"
        )
    return f"site '{view.name}', round {t}: the round is committed, with its update"


@flow(name="site-evaluate", flow_run_name="{site} evaluates round {t}")
@crashes_without_server
def site_evaluate(federation: Federation, site: str, t: int, model: list[FileEntry]) -> None:
    """Evaluate a candidate and write the scores to the site's folder in the store.

    Args:
        federation: federation file.
        site: name of the site.
        t: number of the candidate's round.
        model: files of the candidate.
    """
    federation, _ = own_file(federation, f"site '{site}'")
    with runtime_of(federation, f"site:{site}") as runtime, tags(f"{SITE}{site}"):
        steps.evaluate(runtime, view_of(federation, site), t, model)


@flow(name="site-start", flow_run_name="{site} start")
@crashes_without_server
def site_start(federation: Federation, site: str) -> None:
    """Upload the start model to the site's folder in the store. The coordinator commits it as round 0.

    Args:
        federation: federation file; its start.checkpoint is a path at this site.
        site: name of the site.
    """
    federation, _ = own_file(federation, f"site '{site}'")
    with runtime_of(federation, f"site:{site}") as runtime:
        steps.start(runtime, view_of(federation, site))


@flow(name="prepare-site", flow_run_name="prepare {site}")
def prepare_site(federation: Federation, site: str) -> State:
    """Do the same as `photon prepare --site`. The flow is idempotent.

    Args:
        federation: federation file.
        site: name of the site.
    """
    federation, edited = own_file(federation, f"site '{site}'")
    message = steps.prepare(view_of(federation, site))
    return Completed(message=f"{message} ({edited})" if edited else message)


def failure(futures: Mapping[str, PrefectFuture]) -> str:
    """Wait for a site's steps, in order. Returns why the first failed step failed; empty if none did."""
    for name, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            raise_if_server_away(future)
            return printable(f"{name}: {' '.join(str(future.state.message).split())}")
    return ""
