"""photon deploy: a federation's pools, deployments and automations on a Prefect server, or a prefect.yaml."""

from collections.abc import Iterator, Sequence

from flows.deploy.catalogue import plan
from photon_cli.prefect.remote import asking, require_server
from photon_core.run.members import check_members
from schemas.federation import Federation
from schemas.sections.sites import Member


def deploy(federation: Federation, dry_run: bool, prune: bool, quiet: bool) -> None:
    """Bring the server of PREFECT_API_URL in line with the file and print what changed.

    Raises:
        NotReady: the server does not answer, or fails.
        FederationError: a site cannot train with these settings, a name is already used by something else, or a
            block is missing.
    """
    check_members(federation)
    url = require_server()
    from flows.deploy.apply import apply

    with asking(url):
        lines = apply(plan(federation), dry_run=dry_run, prune=prune)
    if quiet:
        return
    print(*lines, sep="\n")
    print(f"server:      {url}")
    if not dry_run:
        print(f"next:        {'; '.join(_next(federation, url))}")


def print_prefect_yaml(federation: Federation) -> None:
    """Print a prefect.yaml that deploys the same. Needs no server.

    Raises:
        FederationError: a site cannot train with these settings, or a text of the file looks like a template.
    """
    from flows.deploy.prefect_yaml import prefect_yaml

    check_members(federation)
    print(prefect_yaml(plan(federation)), end="")


def _next(federation: Federation, url: str) -> Iterator[str]:
    """What to write afterwards, and where."""
    yield "photon join FILE --coordinator"
    if federation.sites:
        yield f"photon join FILE --site S, at {_names(federation.sites)}"
    if federation.federations:
        yield f"photon join-parent THEIR_FILE --server {url}, at {_names(federation.federations)}"


def _names(members: Sequence[Member]) -> str:
    names = [one.name for one in members]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
