"""photon join-parent: a federation becomes the worker of its pool on its parent's Prefect server.

Two servers take part: the federation's own, which is that of PREFECT_API_URL as in every command with its file,
and the parent's, whose flow runs this worker does. A flow run has the rounds trained on the own server.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from photon_cli.join import probed, report, start_worker
from photon_cli.prefect.credentials import take_credentials
from photon_cli.prefect.remote import NotReady, require_server
from photon_core.errors import FederationError
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from schemas.reading.related import check_fit
from schemas.sections.tree import Parent
from tasks.remote.own_server import RUNS, OwnServer
from tasks.remote.present import file_of
from tasks.tags import tagged

PROCESS = "process"


@dataclass(frozen=True)
class Server:
    """A Prefect server: URL of its API, API key and authentication string; the latter are empty without."""

    url: str
    key: str = ""
    auth: str = ""

    def environment(self) -> dict[str, str]:
        found = {"PREFECT_API_URL": self.url, "PREFECT_API_KEY": self.key, "PREFECT_API_AUTH_STRING": self.auth}
        return {name: value for name, value in found.items() if value}


def join_parent(federation: Federation, file: Path, server: str, check_only: bool, quiet: bool) -> None:
    """Check both servers and both stores, then become the worker of the federation's pool on the parent's server.

    Args:
        federation, file: content and path of a file with `parent`.
        server: URL of the API of the parent's server, or the name of a Prefect profile that has it.
        check_only: flag: return after the checks.

    Raises:
        FederationError: the file has no parent, or does not fit the parent's.
        NotReady: a server or store is not ready; a line for each.
    """
    if federation.parent is None:
        raise FederationError(
            f"{file}: parent: missing, so run '{federation.run}' is no member of another; write parent: "
            "{store: URL, run: NAME, member: NAME}, or join with --site or --coordinator"
        )
    parent, theirs = federation.parent, _named(server)
    take_credentials(federation)
    own = _own(federation)
    pools: list[str] = []

    def parents_server() -> str:
        pools.append(_pool(federation, file, parent, theirs))
        return f"{theirs.url}, work pool {pools[0]} ({PROCESS})"

    checks: dict[str, Callable[[], str]] = {
        "own server": lambda: _check_own(federation, own),
        "own store": lambda: probed(federation, None),
        "parent": parents_server,
        "its store": lambda: probed(as_parent(federation, parent), parent.member),
    }
    report(checks, quiet)
    if check_only:
        return
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        os.environ.pop(name, None)
    name = f"photon-{parent.run}-{parent.member}"
    start_worker(federation, pools[0], PROCESS, name, {**theirs.environment(), **own.environment()})


def as_parent(federation: Federation, parent: Parent) -> Federation:
    """The federation's file with the run and store of its parent."""
    where = {"run": parent.run, "store": parent.store, "storage": parent.storage}
    return federation.model_copy(update=where)


def _named(server: str) -> Server:
    """The server at a URL, or of a Prefect profile.

    Raises:
        NotReady: there is no such profile, or it names no server.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, load_profiles

    if "://" in server:
        return Server(server.rstrip("/"))
    profiles = load_profiles()
    if server not in profiles.names:
        raise NotReady(
            f"--server {server}: neither a URL nor a Prefect profile ({', '.join(sorted(profiles.names))}); write "
            "the URL of the parent's API, such as http://parent.example.org:4200/api"
        )
    settings = profiles[server].settings
    url = settings.get(PREFECT_API_URL)
    if not url:
        raise NotReady(f"--server {server}: the Prefect profile has no PREFECT_API_URL; set it, or write the URL")
    key, auth = (_text(settings.get(one)) for one in (PREFECT_API_KEY, PREFECT_API_AUTH_STRING))
    return Server(str(url), key, auth)


def _own(federation: Federation) -> OwnServer:
    """The server of PREFECT_API_URL.

    Raises:
        NotReady: none is named.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise NotReady("no Prefect server is named for this federation; set PREFECT_API_URL to its own server")
    return OwnServer(url, federation.run, _text(PREFECT_API_KEY.value()), _text(PREFECT_API_AUTH_STRING.value()))


def _text(value: object) -> str:
    """A setting as text, also a secret one; empty for None."""
    return "" if value is None else str(getattr(value, "get_secret_value", lambda: value)())


@contextmanager
def _at(server: Server) -> Iterator[str]:
    """This process with another server's settings."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    settings = {
        PREFECT_API_URL: server.url,
        PREFECT_API_KEY: server.key or None,
        PREFECT_API_AUTH_STRING: server.auth or None,
    }
    with temporary_settings(settings):
        yield require_server()


def _check_own(federation: Federation, own: OwnServer) -> str:
    """Check that the own server answers, and that it has this file's deployments."""
    url = require_server()
    deployed = own.file()
    for key in ("run", "store", "parent"):
        if getattr(deployed, key) != getattr(federation, key):
            raise NotReady(
                f"{key} is {getattr(deployed, key)} in the deployed file and {getattr(federation, key)} in this "
                "one. Write: photon deploy FILE"
            )
    return f"{url}, deployment {RUNS}/{own.run}"


def _pool(federation: Federation, file: Path, parent: Parent, server: Server) -> str:
    """The pool on the parent's server whose flow runs are this member's work."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    name = f"fit/{parent.run}-{parent.member}"
    with _at(server) as url, get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            raise NotReady(
                f"{url} has no deployment '{name}'. There, list '{parent.member}' under federations in the file "
                f"of run '{parent.run}', and write: photon deploy FILE"
            ) from None
        where = f"the federation '{federation.run}'"
        if problem := other_protocol(tagged(deployment.tags, PROTOCOL_TAG), f"the deployment '{name}'", where):
            raise NotReady(problem)
        check_fit(file_of(deployment, where), parent.member, str(file), federation)
        pool = deployment.work_pool_name
        kind = client.read_work_pool(pool).type
    if kind != PROCESS:
        raise NotReady(
            f"the work pool '{pool}' at {url} has type {kind}, but the flow runs of a federation are processes of "
            f"its worker; there, write pool_type: {PROCESS} for '{parent.member}'"
        )
    return str(pool)
