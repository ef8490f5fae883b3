"""The federation file as `photon deploy` put it on the server last: what retries and waiting rounds work with."""

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

LOOK_SECONDS = 5.0  # between two questions of a round that waits
COORDINATOR = "the coordinator"
EDITED = "it works with the file that was deployed since it was created"
KEPT = ContextVar("the flow run has a file of its own, which the rounds within it keep", default=False)
PLACES = ("run", "store", "storage")  # a round that is under way keeps these, beside what all of a run keeps


def own_file(federation: Federation, where: str) -> tuple[Federation, str]:
    """The file that this flow run works with: as given; on a retry, as its deployment has it now.

    A retry's parameters are brought in line, so that the server shows what it works with.

    Args:
        where: whose Photon this is, for the messages: the coordinator, or a site.

    Returns:
        the file, and a sentence if it is another than the flow run was given.

    Raises:
        PhotonError: the deployment was made by a Photon of another protocol; it names who must upgrade.
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
        deployed = _file(deployment, where)
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


def _file(deployment: DeploymentResponse, where: str) -> Federation:
    what = f"the deployment '{deployment.name}'"
    _check(deployment.tags, what, where)
    try:
        return Federation.model_validate((deployment.parameters or {}).get("federation"))
    except ValueError:
        raise PhotonError(f"{what} is of another version: its file cannot be read. Write: photon deploy") from None


class Present:
    """The file of a round that is under way: as given, and after an edit as its deployment has it.

    Safe to use from several threads. A flow run that was started with a file of its own, other than its
    deployment's, keeps that. So does a round where the edit would make it another run's.

    Args:
        federation: the file as given.
        follow: look for edits; the round is deployed.
        born: the run has begun, and what it began with stays.
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
        """The file as it is now; the server is asked every LOOK_SECONDS at most, or if it is to be `fresh`."""
        if self._read is None or not self._lock.acquire(blocking=fresh):
            return self.federation  # another thread looks
        try:
            if fresh or time.monotonic() - self._looked > LOOK_SECONDS:
                self._look()
                self._looked = time.monotonic()
        finally:
            self._lock.release()
        return self.federation

    def _begin(self) -> None:
        """Follow the deployment if the file is its own; a round within a run does as the run."""
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
        except Exception as error:  # of the client: the file stays what it was
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
                    raise FederationError(f"{key} is another")
        except PhotonError as error:
            _log().warning("the deployed file was edited, and this round keeps the one before: %s", error)
            return
        _log().warning("the deployed file was edited: this round continues with it")
        self.federation = edited

    def _deployed(self, there: DeploymentResponse) -> Federation:
        """The deployment's file, with its schedules' ends where the run's birth has put them."""
        file = _file(there, COORDINATOR)
        check_recipe(self._run.birth(), file)
        return as_born(self._run, file)


def _log() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("photon")


def _reader(federation: Federation) -> Callable[[], DeploymentResponse | None]:
    """Reads this flow run's own deployment, or the rounds' one where it has none."""
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
