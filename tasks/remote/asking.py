"""What a site's own worker is asked for: the flow run on its deployment, found by all that it is given."""

import itertools
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun

from photon_core.errors import PhotonError
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.update.settings import work_sha256
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from tasks.remote.present import Present
from tasks.remote.watch import cancel, is_under_way
from tasks.tags import tagged

REFUSED = 409  # parameters that the deployment's schema does not admit


class Asking:
    """One of the site's flows, with the file as it is now.

    The idempotency key has the hash of all that the flow run is given (`asked`): the same twice is one flow run,
    and an edited file is another.

    Args:
        flow: name of the flow.
        present: the file.
        site: whose worker.
        more: the flow's parameters beside the file and the site, as of now.
        key: names what is asked for, within the run.
        tags: of the flow run, beside run and site.
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

    def create(self) -> FlowRun:
        """A flow run that does this: one that is under way, or a new one. Others, of another file, are cancelled.

        One that has ended is passed over: what it was to do, it has not done. So it is again where a cancelled
        round has taken its sites' flow runs with it, and where one has crashed (see Watch).

        Raises:
            PhotonError: there is no such deployment, or it is of another version.
        """
        parameters = {"federation": self._file(), "site": self.site, **self.more()}
        self._check_deployment()
        effect = _effect(parameters)
        for run in self.runs():
            if is_under_way(run):
                if _effect(run.parameters) == effect:
                    return run
                cancel(self.client, run, "the file was edited: another flow run takes its place")
        asked = f"{self.key}/{sha256_bytes(canonical_json(parameters))[:16]}"
        for number in itertools.count(1):
            run = self._run(parameters, asked if number == 1 else f"{asked}/{number}")
            if is_under_way(run):
                break
        return run

    def runs(self) -> list[FlowRun]:
        """The flow runs that there have been for this, whatever they were given, oldest first."""
        found = self.client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[self.flow])),
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=self.tags)),
        )
        return sorted(found, key=lambda run: str(run.created))

    def is_stale(self, run: FlowRun) -> bool:
        """Whether the flow run was given another file than this one is now."""
        return bool(run.parameters.get("federation") != self._file())

    def _file(self) -> dict[str, Any]:
        return self.present.federation.model_dump(mode="json")

    def _check_deployment(self) -> None:
        from prefect.exceptions import ObjectNotFound

        try:
            deployment = self.client.read_deployment_by_name(self.name)
        except ObjectNotFound:
            raise PhotonError(f"there is no deployment '{self.name}'. Write: photon deploy") from None
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
                f"the deployment '{self.name}' is of another version: it does not take these parameters. "
                "Write: photon deploy"
            ) from None
        return flow_run


def _effect(parameters: dict[str, Any]) -> str:
    """Hash of what a flow run's result and place depend on; of the whole where its file cannot be read."""
    # a model is named by the tags, whatever two rounds at once call its files
    others = {name: value for name, value in parameters.items() if name not in ("federation", "model")}
    try:
        file = Federation.model_validate(parameters["federation"])
        sections = {one.name: one for one in file.members}
        site = sections[str(parameters["site"])].model_dump(mode="json")
    except (ValueError, KeyError):
        return sha256_bytes(canonical_json(parameters))
    reach = [file.store, file.storage.model_dump(mode="json")]
    return sha256_bytes(canonical_json([work_sha256(file), site, reach, others]))
