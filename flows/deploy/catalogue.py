"""A federation on a Prefect server: its work pools, deployments and automations, derived from the file.

Pure: nothing here imports Prefect or calls a server. flows/deploy/apply.py brings a server in line with a plan.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from photon_core.jobs.telemetry import OFF
from schemas.federation import Federation
from schemas.protocol import PROTOCOL, PROTOCOL_TAG
from schemas.sections.deploy import Notify
from schemas.sections.sites import Member
from tasks.events import LEFT_OUT

TAG = "photon"
MARKER = f"{TAG} run:"
COORDINATOR = "the coordinator"
HEARTBEAT = "prefect.flow-run.heartbeat"
# After a heartbeat, one of these must follow in time. Running is not among them: it follows the first heartbeat
# immediately, and would hide a flow run that dies before its second.
SIGNS_OF_LIFE = tuple(
    f"prefect.flow-run.{name}"
    for name in (
        *("heartbeat", "Completed", "Cached", "Failed", "TimedOut", "Cancelled", "Crashed"),
        *("Scheduled", "Late", "Pending", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused", "Suspended"),
    )
)
# A round's process that is killed during its imports sends no heartbeat: its flow run stays Pending.
STARTED = (
    "prefect.flow-run.Running",
    "prefect.flow-run.Cancelling",
    *sorted({*SIGNS_OF_LIFE} - {"prefect.flow-run.Pending"}),
)
PENDING = 3  # multiple of zombie_after, as for a round that waits for a site's flow run (tasks/remote/watch.py)
COLLISION_STRATEGY = "ENQUEUE"  # at the limit; cancelling instead would lose the flow run of a retry
SPOKEN = f"{PROTOCOL_TAG}{PROTOCOL}"  # tag of every deployment: flow runs and `photon join` compare it
ROUND_ENDS_BADLY = ("prefect.flow-run.Failed", "prefect.flow-run.TimedOut", "prefect.flow-run.Crashed")
CHILD_SETTINGS = {
    **OFF,
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",  # results are in the store
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # a result that is persisted anyway is not a pickle
}

# Command of a member's flow runs in process pools. Without it, Prefect's worker starts a process for each flow run
# that imports Prefect to prepare a working copy of the code, which does not exist, and then imports it again.
COMMAND = "python -m prefect.engine"

MODULES = {
    "site": ("site_round", "site_evaluate", "site_start", "prepare_site"),
    "federated_round": ("fit", "fit_evaluate", "evaluate_members"),
}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "aws_access_key_id", "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key"}
SHAREABLE = "Its file names it (pool:), and other runs' files may."  # last line of a shareable pool's description
VALUE_BLOCKS = ("secret", "json")  # Prefect's generic block types, whose content is all in `value`


@dataclass(frozen=True)
class Pool:
    """A work pool. The first line of its description names its run, the second its sites."""

    name: str
    type: str
    description: str

    @property
    def shareable(self) -> bool:
        return shareable(self.description)


@dataclass(frozen=True)
class Deployment:
    """A flow's entry on the server. `limit` is the number of its concurrent flow runs; further ones wait."""

    flow: str
    name: str
    entrypoint: str
    pool: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    job_variables: dict[str, Any]
    description: str
    cron: str | None = None
    timezone: str = "UTC"
    limit: int | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"


@dataclass(frozen=True)
class Automation:
    """An event trigger and its action, in the form of Prefect's API. `message` is the text of a notification."""

    name: str
    description: str
    trigger: dict[str, Any]
    action: dict[str, Any] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Plan:
    run: str
    pools: tuple[Pool, ...]
    deployments: tuple[Deployment, ...]
    automations: tuple[Automation, ...]
    notify: Notify | None = None
    credentials: str | None = None  # block with the store's credentials, as type/name

    @property
    def marker(self) -> str:
        """First line of the description of this run's pools."""
        return f"{MARKER}{self.run}"

    @property
    def tags(self) -> tuple[str, str]:
        """Tags of every deployment of this run, and of no other."""
        return TAG, run_tag(self.run)

    @property
    def prefix(self) -> str:
        """Prefix of the names of this run's automations. A run's name contains no slash."""
        return f"photon/{self.run}/"


def run_tag(run: str) -> str:
    return f"run:{run}"


def made_for(description: str | None) -> tuple[str, str]:
    """The run of a pool, and its sites in that run, by its description; empty for a foreign pool."""
    first, *rest = (description or "").split("\n")
    if not first.startswith(MARKER):
        return "", ""
    return first.removeprefix(MARKER), rest[0].removeprefix("Of ").split(". ")[0] if rest else ""


def shareable(description: str | None) -> bool:
    """Whether the file of a pool's run names the pool, so that files of other runs may name it, too."""
    return SHAREABLE in (description or "").split("\n")


def plan(federation: Federation) -> Plan:
    """Everything that `photon deploy` registers on a server."""
    return Plan(
        run=federation.run,
        pools=_pools(federation),
        deployments=(
            *_coordinator_deployments(federation),
            *_site_deployments(federation),
            *_federation_deployments(federation),
        ),
        automations=(_zombies(federation), _never_started(federation), *_notifications(federation)),
        notify=federation.deploy.notify,
        credentials=federation.storage.block,
    )


def _pools(federation: Federation) -> tuple[Pool, ...]:
    """The coordinator's and every member's pool, without duplicates."""
    marker, named = f"{MARKER}{federation.run}", federation.named_pools
    pools = {federation.coordinator_pool: (federation.deploy.pool_type, [COORDINATOR])}
    for what, _, one in federation.placed():
        kind = one.pool_type or federation.deploy.pool_type
        pools.setdefault(one.work_pool, (kind, []))[1].append(f"{what} {one.name}")
    return tuple(
        Pool(
            name,
            kind,
            f"{marker}\nOf {', '.join(users)}. Made by photon deploy." + f"\n{SHAREABLE}" * (name in named),
        )
        for name, (kind, users) in pools.items()
    )


def _coordinator_deployments(federation: Federation) -> tuple[Deployment, ...]:
    deploy = federation.deploy
    whole = {"federation": federation.model_dump(mode="json")}
    common: dict[str, Any] = {
        "name": federation.run,
        "pool": federation.coordinator_pool,
        "tags": (TAG, run_tag(federation.run), SPOKEN),
        "job_variables": {"env": _environment(federation)},
    }
    return (
        Deployment(
            **_flow("federated_round"),
            **common,
            parameters={**whole, "deployed": True},
            description=f"One round of run {federation.run}: advances the global model by one round.",
            cron=deploy.schedule,
            timezone=deploy.timezone,
            limit=1,
        ),
        Deployment(
            **_flow("federated_run"),
            **common,
            parameters={**whole, "deployed": True},
            description=f"Rounds of run {federation.run}, one after the other, until rounds.count is reached.",
            limit=1,
        ),
        Deployment(
            **_flow("rerun_site"),
            **common,
            parameters=whole,
            description=f"Repeats one site's training in run {federation.run}, for a round not aggregated yet.",
        ),
        Deployment(
            **_flow("rollback"),
            **common,
            parameters=whole,
            description=f"Rolls run {federation.run} back to an earlier round; the next round starts from there.",
        ),
    )


def _site_deployments(federation: Federation) -> tuple[Deployment, ...]:
    whole = federation.model_dump(mode="json")
    flows = {
        "site_round": "{site} in one round: validate, train, upload.",
        "site_evaluate": "{site} evaluates a global model on its held-out text.",
        "prepare_site": "{site} turns its text into validated shards.",
    }
    start = {"site_start": "{site} uploads the model that the run starts from."}
    return tuple(
        Deployment(
            **_flow(function),
            name=f"{federation.run}-{site.name}",
            pool=site.work_pool,
            tags=(TAG, run_tag(federation.run), SPOKEN, f"site:{site.name}"),
            job_variables=_job_variables(site, federation, _environment(federation)),
            parameters={"federation": whole, "site": site.name},
            description=f"Run {federation.run}: " + text.format(site=f"site {site.name}"),
        )
        for site in federation.sites
        for function, text in (flows | (start if site.name == federation.start.site else {})).items()
    )


def _job_variables(one: Member, federation: Federation, environment: dict[str, str]) -> dict[str, Any]:
    """Job variables of a member's flow runs; those of its section win."""
    is_process = (one.pool_type or federation.deploy.pool_type) == "process"
    return {
        **({"command": COMMAND} if is_process else {}),
        **one.job_variables,
        "env": {**environment, **one.job_variables.get("env", {})},
    }


def _federation_deployments(federation: Federation) -> tuple[Deployment, ...]:
    """Flows of members that are federations, and of this one's own part as a member.

    A member has its own credentials for its parent's store, so it gets no references to this file's block.
    """
    whole = federation.model_dump(mode="json")
    flows = {
        "fit": "{name} in one round: enter, train its own rounds, contribute.",
        "fit_evaluate": "the members of {name} evaluate a global model.",
    }
    members = [
        Deployment(
            **_flow(function),
            name=f"{federation.run}-{child.name}",
            pool=child.work_pool,
            tags=(TAG, run_tag(federation.run), SPOKEN, f"site:{child.name}"),
            job_variables=_job_variables(child, federation, _settings(federation)),
            parameters={"federation": whole, "member": child.name, "deployed": True},
            description=f"Run {federation.run}: " + text.format(name=f"federation {child.name}"),
        )
        for child in federation.federations
        for function, text in flows.items()
    ]
    if federation.parent is None:
        return tuple(members)
    scores = Deployment(
        **_flow("evaluate_members"),
        name=federation.run,
        pool=federation.coordinator_pool,
        tags=(TAG, run_tag(federation.run), SPOKEN),
        job_variables={"env": _environment(federation)},
        parameters={"federation": whole, "deployed": True},
        description=f"The members of run {federation.run} evaluate a model of its parent.",
    )
    return (*members, scores)


def _flow(function: str) -> dict[str, Any]:
    """Name and entrypoint of a flow. A flow that MODULES does not name is in the module of the same name.

    The entrypoint names a module, never a file: a file would be loaded a second time, with duplicate classes.
    """
    module = next((module for module, functions in MODULES.items() if function in functions), function)
    return {"flow": function.replace("_", "-"), "entrypoint": f"flows.{module}:{function}"}


def _environment(federation: Federation) -> dict[str, str]:
    """Environment of every flow run's process that works with the file's store, on any worker."""
    return {**_settings(federation), **_credentials(federation.storage.block)}


def _settings(federation: Federation) -> dict[str, str]:
    return {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": f"{federation.deploy.heartbeat:.0f}", **CHILD_SETTINGS}


def _credentials(block: str | None) -> dict[str, str]:
    """References to the block's values. The worker resolves them when it starts a run. The server shows only the
    references."""
    if block is None:
        return {}
    kind, name = block.split("/")
    inside = ".value" if kind in VALUE_BLOCKS else ""
    return {
        variable: f"{{{{ prefect.blocks.{kind}.{name}{inside}.{key} }}}}" for variable, key in CREDENTIALS.items()
    }


def _of_run(federation: Federation) -> dict[str, str]:
    """A filter for the events of this run's flow runs, by their tag."""
    return {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{run_tag(federation.run)}"}


def _zombies(federation: Federation) -> Automation:
    seconds = federation.deploy.zombie_after
    return Automation(
        name=f"photon/{federation.run}/zombies",
        description=f"Marks a flow run of {federation.run} as crashed after {seconds:g} s without a heartbeat.",
        trigger=_silence(HEARTBEAT, SIGNS_OF_LIFE, _of_run(federation), seconds),
        action=_crash(f"no heartbeat for {seconds:g} s: its process is gone"),
    )


def _never_started(federation: Federation) -> Automation:
    """For rounds only. A round itself watches its sites' flow runs."""
    seconds = PENDING * federation.deploy.zombie_after
    rounds = {
        "prefect.resource.role": "flow",
        "prefect.resource.name": ["federated-round", "federated-run"],
    }
    return Automation(
        name=f"photon/{federation.run}/never started",
        description=f"Marks a round of {federation.run} as crashed after {seconds:g} s in state Pending.",
        trigger=_silence("prefect.flow-run.Pending", STARTED, [_of_run(federation), rounds], seconds),
        action=_crash(f"not started within {seconds:g} s: no process started"),
    )


def _silence(after: str, expected: Iterable[str], related: Any, seconds: float) -> dict[str, Any]:
    """A trigger that fires if no expected event of a flow run comes within `seconds` after an event `after`."""
    return {
        "type": "event",
        "posture": "Proactive",
        "after": [after],
        "expect": sorted(expected),
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": related,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": seconds,
    }


def _crash(message: str) -> dict[str, Any]:
    return {"type": "change-flow-run-state", "state": "CRASHED", "message": message}


def _notifications(federation: Federation) -> tuple[Automation, ...]:
    if federation.deploy.notify is None:
        return ()
    reactive = {"type": "event", "posture": "Reactive", "threshold": 1, "within": 0.0}
    rounds = {"prefect.resource.role": "flow", "prefect.resource.name": "federated-round"}
    sites = [f"photon.site.{federation.run}.{one.name}" for one in federation.members]
    return (
        Automation(
            name=f"photon/{federation.run}/round failed",
            description=f"Reports a failed round of {federation.run}.",
            trigger={
                **reactive,
                "expect": sorted(ROUND_ENDS_BADLY),
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": [_of_run(federation), rounds],
                "for_each": ["prefect.resource.id"],
            },
            message="'Photon: ' ~ flow_run.name ~ ': ' ~ flow_run.state.name ~ '. ' ~ flow_run.state.message",
        ),
        Automation(
            name=f"photon/{federation.run}/site left out",
            description=f"Reports a site that a round of {federation.run} excluded.",
            trigger={
                **reactive,
                "expect": [LEFT_OUT],
                "match": {"prefect.resource.id": sites},
                "for_each": ["prefect.resource.id"],
            },
            message=(
                f"'Photon: {federation.run}' ~ ' round ' ~ event.payload.round ~ ' excluded site '"
                " ~ event.payload.site ~ ': ' ~ event.payload.reason"
            ),
        ),
    )
