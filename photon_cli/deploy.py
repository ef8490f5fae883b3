"""photon deploy: a federation's pools, deployments and automations on a Prefect server."""

from flows.deploy.catalogue import plan
from photon_cli.prefect.remote import asking, require_server
from photon_core.hardware.parallelism import check_infra
from schemas.federation import Federation


def deploy(federation: Federation, dry_run: bool, prune: bool, quiet: bool) -> None:
    """Bring the server of PREFECT_API_URL in line with the file, and say what was done.

    Raises:
        NotReady: the server does not answer, or fails.
        FederationError: a site could not train as the file says, a name is taken by something else, or a block is
            missing.
    """
    for site in federation.active:
        check_infra(federation, site)
    url = require_server()
    from flows.deploy.apply import apply

    with asking(url):
        lines = apply(plan(federation), dry_run=dry_run, prune=prune)
    if quiet:
        return
    print(*lines, sep="\n")
    print(f"server:      {url}")
    if not dry_run:
        print(f"next:        photon join FILE --coordinator; photon join FILE --site S, at {_names(federation)}")


def _names(federation: Federation) -> str:
    names = [site.name for site in federation.sites]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
