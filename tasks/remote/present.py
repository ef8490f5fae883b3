"""The federation file of the latest `photon deploy`, which retries and waiting rounds use."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError, ObjectNotFound
from prefect.logging import get_logger

from photon_core.errors import FederationError, PhotonError
from photon_core.run.birth import as_born, check_recipe
from photon_core.run.opening import FROZEN
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from schemas.server_errors import told
from tasks.tags import tagged

LOOK_SECONDS = 5.0  # shortest time between two requests of a waiting round
COORDINATOR = "the coordinator"
EDITED = "it uses the file that was deployed after it was created"
KEPT = ContextVar("the flow run has its own file, which the rounds within it keep", default=False)
PLACES = ("run", "store", "storage")  # keys that cannot change in a running round, beside those of the whole run


def own_file(federation: Federation, where: str) -> tuple[Federation, str]:
    """The file that this flow run uses: as given, or, on a retry, the deployment's current one.

    A retry's parameters are updated, so that the server shows the file in use.

    Args:
        federation: file that the flow run was given.
        where: name of this process for messages: the coordinator, or a site.

    Returns:
        the file, and a sentence if it differs from the given one.

    Raises:
        PhotonError: a Photon with another protocol made the deployment; the message names which side must upgrade.
    """
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None or flow_run.deployment_id is None:
        return federation, ""
    if (flow_run.run_count or 1) <= 1:
        _check(flow_run.tags, "this flow run's deployment", where)
        return federation, ""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment(flow_run.deployment_id)
        except ObjectNotFound:  # pruned since
            return federation, ""
        deployed = file_of(deployment, where)
        present = as_born(run_of(deployed), deployed)
        if federation in (deployed, present):
            return federation, ""
        given = client.read_flow_run(flow_run.id).parameters
        given["federation"] = present.model_dump(mode="json")
        client.update_flow_run(flow_run.id, parameters=given)
    get_run_logger().warning("this is a retry after `photon deploy`: %s", EDITED)
    return present, EDITED


def _check(tags: list[str], what: str, where: str) -> None:
    if problem := other_protocol(tagged(tags, PROTOCOL_TAG), what, where):
        raise PhotonError(problem)


def file_of(deployment: DeploymentResponse, where: str) -> Federation:
    """The file that a deployment was made with.

    Raises:
        PhotonError: another version of Photon made the deployment.
    """
    what = f"the deployment '{deployment.name}'"
    _check(deployment.tags, what, where)
    try:
        return Federation.model_validate((deployment.parameters or {}).get("federation"))
    except ValueError:
        raise PhotonError(
            f"{what} was made by another version of Photon: its file cannot be read. Write: photon deploy FILE"
        ) from None


class Present:
    """The file of a running round: as given, and after an edit the deployment's.

    Thread-safe. A flow run that was started with another file than its deployment's keeps its file. A round also
    keeps its file if the edit would change what a running round cannot change.

    Args:
        federation: file that the round was given.
        follow: flag: check for edits, because the round is deployed.
        born: flag: the run exists, so that its frozen keys cannot change.
    """

    def __init__(self, federation: Federation, follow: bool = False, born: bool = True) -> None:
        self.federation, self._fixed = federation, (*PLACES, *(FROZEN if born else ()))
        self._run = run_of(federation)
        self._lock = threading.Lock()
        self._looked = 0.0
        self._raw: Any = None
        self._read = _reader(federation) if follow else None
        if self._read is not None:
            self._begin()

    def look(self, fresh: bool = False) -> Federation:
        """The current file. Queries the server at most every LOOK_SECONDS, or always with `fresh`."""
        if self._read is None or not self._lock.acquire(blocking=fresh):
            return self.federation  # another thread queries the server
        try:
            if fresh or time.monotonic() - self._looked > LOOK_SECONDS:
                self._look()
                self._looked = time.monotonic()
        finally:
            self._lock.release()
        return self.federation

    def _begin(self) -> None:
        """Follow the deployment if the given file is the deployed one. A round within a run does as the run."""
        context = FlowRunContext.get()
        inner = context is not None and context.flow_run is not None and context.flow_run.parent_task_run_id
        assert self._read is not None
        deployment = self._read()
        if deployment is None or (inner and KEPT.get()):
            self._read = None
            return
        KEPT.set(False)
        with suppress(PhotonError):
            if self._deployed(deployment) == as_born(self._run, self.federation):
                self._raw = (deployment.parameters or {}).get("federation")
            elif not inner:
                self._read = None
                KEPT.set(True)

    def _look(self) -> None:
        assert self._read is not None
        try:
            deployment = self._read()
        except Exception as error:  # the client raises many kinds; the file stays as it was
            _log().debug("the deployment could not be read: %s", told(error))
            return
        raw = None if deployment is None else (deployment.parameters or {}).get("federation")
        if deployment is None or raw == self._raw:
            return
        self._raw = raw
        try:
            edited = self._deployed(deployment)
            if edited == self.federation:
                return
            for key in self._fixed:
                if getattr(edited, key) != getattr(self.federation, key):
                    raise FederationError(f"{key} has changed")
        except PhotonError as error:
            _log().warning("the deployed file was edited, but this round keeps its old file: %s", error)
            return
        _log().warning("the deployed file was edited: this round continues with the new file")
        self.federation = edited

    def _deployed(self, there: DeploymentResponse) -> Federation:
        """The deployment's file, with the schedule ends that were fixed when the run began."""
        file = file_of(there, COORDINATOR)
        check_recipe(self._run.run_manifest(), file)
        return as_born(self._run, file)


def _log() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("photon")


def _reader(federation: Federation) -> Callable[[], DeploymentResponse | None]:
    """A function that reads this flow run's deployment, or that of the rounds if it has none."""
    context = FlowRunContext.get()
    own = context.flow_run.deployment_id if context and context.flow_run else None

    def read() -> DeploymentResponse | None:
        with get_client(sync_client=True) as client:
            try:
                if own is not None:
                    return client.read_deployment(own)
                return client.read_deployment_by_name(f"federated-round/{federation.run}")
            except ObjectNotFound:
                return None

    return read
