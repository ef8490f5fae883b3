"""Requests to a site's worker: the flow run on its deployment, identified by everything that it is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun

from photon_core.errors import PhotonError
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.update.settings import work_sha256
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from tasks.remote.present import Present
from tasks.remote.watch import cancel, first_under_way, is_under_way, tagged_runs
from tasks.tags import tagged

REFUSED = 409  # HTTP status for parameters that do not fit the deployment's schema


class Asking:
    """A request for one of the site's flows, with the current file.

    The idempotency key contains the hash of all parameters: the same request twice is one flow run, and an edited
    file makes another.

    Args:
        flow: name of the flow.
        present: current file.
        site: name of the site.
        more: function that returns the flow's current parameters, except the file.
        key: name of the request within the run.
        tags: tags of the flow run, except run and site.
    """

    client: SyncPrefectClient

    def __init__(
        self,
        flow: str,
        present: Present,
        site: str,
        more: Callable[[], dict[str, Any]],
        key: str,
        tags: list[str],
    ) -> None:
        run = present.federation.run
        self.flow, self.present, self.site, self.more = flow, present, site, more
        self.name, self.key = f"{flow}/{run}-{site}", f"{run}/{key}"
        self.tags = [f"run:{run}", f"site:{site}", *tags]

    @property
    def who(self) -> str:
        return f"site '{self.site}'"

    @property
    def silence(self) -> float:
        return self.present.federation.deploy.zombie_after

    @contextmanager
    def connect(self) -> Iterator[SyncPrefectClient]:
        with get_client(sync_client=True) as self.client:
            yield self.client

    def create(self) -> FlowRun:
        """A flow run for this request: an active one, or a new one. Active ones for another file are cancelled.

        A flow run that has ended is ignored, because it has not delivered: for example, it was cancelled with an
        earlier round, or it crashed (see Watch).

        Raises:
            PhotonError: the deployment does not exist, or another version of Photon made it.
        """
        parameters = {"federation": self._file(), **self.more()}
        self._check_deployment()
        effect = _effect(parameters)
        for run in self.runs():
            if is_under_way(run):
                if _effect(run.parameters) == effect:
                    return run
                cancel(self.client, run, "the file was edited: another flow run replaces this one")
        asked = f"{self.key}/{sha256_bytes(canonical_json(parameters))[:16]}"
        return first_under_way(lambda n: self._run(parameters, asked if n == 1 else f"{asked}/{n}"))

    def runs(self) -> list[FlowRun]:
        """All flow runs of this request, with any parameters, oldest first."""
        return tagged_runs(self.client, self.flow, self.tags)

    def is_stale(self, run: FlowRun) -> bool:
        """Whether the flow run was given another file than the current one."""
        return bool(run.parameters.get("federation") != self._file())

    def _file(self) -> dict[str, Any]:
        return self.present.federation.model_dump(mode="json")

    def _check_deployment(self) -> None:
        from prefect.exceptions import ObjectNotFound

        try:
            deployment = self.client.read_deployment_by_name(self.name)
        except ObjectNotFound:
            raise PhotonError(
                f"the Prefect server has no deployment '{self.name}'. Write: photon deploy FILE"
            ) from None
        tag = tagged(deployment.tags, PROTOCOL_TAG)
        if problem := other_protocol(tag, f"the deployment '{self.name}'", "the coordinator"):
            raise PhotonError(problem)

    def _run(self, parameters: dict[str, Any], key: str) -> FlowRun:
        from prefect.deployments import run_deployment
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            flow_run: FlowRun = run_deployment(
                self.name,
                client=self.client,
                parameters=parameters,
                timeout=0,
                idempotency_key=key,
                tags=self.tags,
            )
        except PrefectHTTPStatusError as error:
            if error.response.status_code != REFUSED:
                raise
            raise PhotonError(
                f"the deployment '{self.name}' was made by another version of Photon: it does not accept these "
                "parameters. Write: photon deploy FILE"
            ) from None
        return flow_run


def _effect(parameters: dict[str, Any]) -> str:
    """Hash of what a flow run's result and location depend on; of all parameters if the file cannot be read."""
    # the tags identify a model: concurrent rounds may give its files different names
    others = {name: value for name, value in parameters.items() if name not in ("federation", "model")}
    try:
        file = Federation.model_validate(parameters["federation"])
        sections = {one.name: one for one in file.members}
        site = sections[str(parameters.get("site", parameters.get("member")))].model_dump(mode="json")
    except (ValueError, KeyError):
        return sha256_bytes(canonical_json(parameters))
    reach = [file.store, file.storage.model_dump(mode="json")]
    return sha256_bytes(canonical_json([work_sha256(file), site, reach, others]))
