"""photon rerun: one site trains again for a round that is not aggregated yet."""

from pathlib import Path

from photon_core.aggregation.attempts import is_done, superseded
from photon_core.errors import PhotonError
from photon_core.run.birth import as_born
from photon_core.run.run import run_of
from photon_core.run.updates import check_asked, check_in_time, next_attempt
from schemas.federation import Federation


def rerun(federation: Federation, file: Path, t: int, site: str, force: bool, quiet: bool) -> None:
    """Where PREFECT_API_URL names a server, through the deployment there; else here, embedded.

    Raises:
        FederationError: there is no such site, or round, or the round does not ask for the site.
        StoreConflict: round t is committed, or was before the update came.
        PhotonError: the rerun failed, and why.
    """
    import os

    run = run_of(federation)
    check_asked(federation, t, site)
    federation = as_born(run, federation)
    attempt = next_attempt(run, t, site) if force else 1
    if (done := is_done(run, federation, t, site, attempt)) is not None:
        print(f"{site} has committed its update for round {t} (attempt {done.attempt}). To train again: --force")
        return
    if os.environ.get("PREFECT_API_URL"):
        _deployed(federation, t, site, force)
    else:
        _embedded(federation, file, t, site, attempt, quiet)
    update = is_done(run, federation, t, site, attempt)
    if update is None:
        why = superseded(run, federation, t, site)
        deployed = f": {why}. If the file here is not the deployed one, write: photon deploy" if why else ""
        raise PhotonError(f"site '{site}', round {t}: no update was committed{deployed}")
    check_in_time(run, update)
    print(f"{site}: attempt {update.attempt} for round {t} is committed, {update.tokens:,} tokens")


def _deployed(federation: Federation, t: int, site: str, force: bool) -> None:
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    from photon_cli.prefect.remote import NotReady, asking, require_server

    name, deadline = f"rerun-site/{federation.run}", federation.rounds.deadline
    with asking(url := require_server()):
        try:
            asked = {"site": site, "t": t, "force": force}
            flow_run = run_deployment(name, parameters=asked, timeout=deadline, poll_interval=2)
        except ObjectNotFound:
            raise NotReady(f"{url} has no deployment '{name}'. Write: photon deploy FILE") from None
    if not flow_run.state.is_completed():
        why = flow_run.state.message or f"not done after {deadline:g} s"
        raise PhotonError(f"rerun of site '{site}' for round {t}: {flow_run.state.name}: {why}")


def _embedded(federation: Federation, file: Path, t: int, site: str, attempt: int, quiet: bool) -> None:
    from photon_cli.progress import display
    from photon_cli.run import embedded

    with display(quiet) as show, embedded(federation, file, show):
        from flows.site import site_round

        site_round(federation, site, t, attempt)
