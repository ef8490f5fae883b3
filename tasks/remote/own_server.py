"""The own Prefect server of a federation that is a member of another.

The parent's server starts `fit` and `fit-evaluate` at the member. These have the work done on the member's own
server, by the deployments of its file, and wait for the result in its store. `photon join-parent` sets the
environment by which they find that server.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from photon_core.errors import PhotonError
from schemas.federation import Federation
from tasks.remote.present import COORDINATOR, file_of
from tasks.remote.watch import first_under_way, is_under_way, tagged_runs
from tasks.tags import artifact_key

RUNS, SCORES = "federated-run", "evaluate-members"  # flows of the member's own deployments
URL, RUN, KEY, AUTH = (f"PHOTON_OWN_{name}" for name in ("API_URL", "RUN", "API_KEY", "API_AUTH_STRING"))


@dataclass(frozen=True)
class OwnServer:
    """The server, and the run whose deployments it has.

    Args:
        url: URL of its API.
        run: name of the run.
        key, auth: API key and authentication string; empty without.
    """

    url: str
    run: str
    key: str = ""
    auth: str = ""

    @classmethod
    def of_environment(cls) -> "OwnServer | None":
        """The server of this worker's federation; None if `photon join-parent` has not started the worker."""
        env = os.environ
        if URL not in env or RUN not in env:
            return None
        return cls(env[URL], env[RUN], env.get(KEY, ""), env.get(AUTH, ""))

    def environment(self) -> dict[str, str]:
        """The variables that `of_environment` reads."""
        return {URL: self.url, RUN: self.run, KEY: self.key, AUTH: self.auth}

    def client(self) -> SyncPrefectClient:
        """A client of this server, whichever server the process itself works for."""
        return SyncPrefectClient(self.url, api_key=self.key or None, auth_string=self.auth or None)

    def file(self) -> Federation:
        """The federation file of the latest `photon deploy` on this server.

        Raises:
            PhotonError: there is none, or another version of Photon made it.
        """
        with self.client() as client:
            return file_of(deployment(client, f"{RUNS}/{self.run}"), COORDINATOR)

    @property
    def place(self) -> str:
        """Where `file` comes from, for messages."""
        return f"{self.url}, deployment {RUNS}/{self.run}"


class OwnRequest:
    """A request for a flow run on the own server. The same request twice is one flow run.

    Args:
        server: the server.
        flow: name of the flow.
        parameters: parameters of the flow, except those of its deployment.
        tags: tags by which the flow runs of this request are known.
        silence: seconds without a sign after which its flow run counts as crashed.
    """

    _client: SyncPrefectClient

    def __init__(
        self, server: OwnServer, flow: str, parameters: Mapping[str, Any], tags: list[str], silence: float
    ) -> None:
        self.server, self.flow, self.parameters, self.silence = server, flow, dict(parameters), silence
        self.site, self.name = server.run, f"{flow}/{server.run}"
        self.tags = [f"run:{server.run}", *tags]

    @property
    def who(self) -> str:
        return f"'{self.name}' on the federation's own server {self.server.url}"

    @contextmanager
    def connect(self) -> Iterator[SyncPrefectClient]:
        with self.server.client() as self._client:
            yield self._client

    def create(self) -> FlowRun:
        """A flow run for this request: an active one, or a new one. The calling flow run shows a link to it.

        Raises:
            PhotonError: the deployment does not exist.
        """
        run = next(filter(is_under_way, self.runs()), None) or self._create()
        link = f"{self.server.url.removesuffix('/api')}/runs/flow-run/{run.id}"
        key = artifact_key(self.server.run, self.flow)
        create_link_artifact(link, f"{run.name} on {self.server.url}", key=key)
        return run

    def _create(self) -> FlowRun:
        there = deployment(self._client, self.name)
        return first_under_way(
            lambda number: self._client.create_flow_run_from_deployment(
                there.id,
                parameters=self.parameters,
                tags=self.tags,
                idempotency_key="/".join([*self.tags, str(number)]),
            )
        )

    def runs(self) -> list[FlowRun]:
        """All flow runs of this request, oldest first."""
        return tagged_runs(self._client, self.flow, self.tags)

    def is_stale(self, _run: FlowRun) -> bool:
        """Never: the flow run reads the file of its deployment."""
        return False


def deployment(client: SyncPrefectClient, name: str) -> Any:
    """The deployment of that name.

    Raises:
        PhotonError: there is none.
    """
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise PhotonError(
            f"the federation's own Prefect server {client.api_url} has no deployment '{name}'. "
            "Write there: photon deploy FILE"
        ) from None


def call_tag(parent: str, t: int) -> str:
    """Tag of what a member does for a round of its parent."""
    return f"call:{parent}/{t}"
