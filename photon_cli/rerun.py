"""photon rerun: repeat one site's training for a round that is not aggregated yet."""

from pathlib import Path

from photon_core.aggregation.attempts import is_done, superseded
from photon_core.errors import PhotonError
from photon_core.run.birth import as_born
from photon_core.run.members import member
from photon_core.run.run import run_of
from photon_core.run.updates import check_asked, check_in_time, next_attempt
from schemas.federation import Federation
from schemas.view import SiteView, view_of


def rerun(federation: Federation, file: Path, t: int, site: str, force: bool, quiet: bool) -> None:
    """Rerun through the deployment on the server of PREFECT_API_URL, if it is set; else embedded, here.

    Raises:
        FederationError: the site or round does not exist, or the round did not sample the site.
        StoreConflict: round t is committed, or was committed before the update arrived.
        PhotonError: the rerun failed; the message has the reason.
    """
    import os

    run = run_of(federation)
    check_asked(member(federation, site), t)
    view = view_of(as_born(run, federation), site)
    attempt = next_attempt(run, t, site) if force else 1
    if (done := is_done(run, view, t, attempt)) is not None:
        print(
            f"{site} has already committed its update for round {t} (attempt {done.attempt}). "
            "To train again, add --force"
        )
        return
    if os.environ.get("PREFECT_API_URL"):
        _deployed(view, t, force)
    else:
        _embedded(view, file, t, attempt, quiet)
    update = is_done(run, view, t, attempt)
    if update is None:
        why = superseded(run, view, t)
        deployed = f": {why}. If this file differs from the deployed one, write: photon deploy FILE" if why else ""
        raise PhotonError(f"site '{site}', round {t}: no update was committed{deployed}")
    check_in_time(run, update)
    print(f"{site}: attempt {update.attempt} for round {t} is committed, {update.tokens:,} tokens")


def _deployed(view: SiteView, t: int, force: bool) -> None:
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    from photon_cli.prefect.remote import NotReady, asking, require_server

    name, deadline = f"rerun-site/{view.federation.run}", view.federation.rounds.deadline
    with asking(url := require_server()):
        try:
            asked = {"site": view.name, "t": t, "force": force}
            flow_run = run_deployment(name, parameters=asked, timeout=deadline, poll_interval=2)
        except ObjectNotFound:
            raise NotReady(f"{url} has no deployment '{name}'. Write: photon deploy FILE") from None
    if not flow_run.state.is_completed():
        why = flow_run.state.message or f"not finished after {deadline:g} s"
        raise PhotonError(f"rerun of site '{view.name}' for round {t}: {flow_run.state.name}: {why}")


def _embedded(view: SiteView, file: Path, t: int, attempt: int, quiet: bool) -> None:
    from photon_cli.progress import display
    from photon_cli.run import embedded
    from photon_cli.tree import alone

    with display(quiet) as show, embedded(alone(view.federation, file), show):
        from flows.site import site_round

        site_round(view.federation, view.name, t, attempt)
