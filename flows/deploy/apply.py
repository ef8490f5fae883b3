"""Bring a Prefect server in line with a plan (flows/deploy/catalogue.py). Applying a plan is idempotent."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flows.deploy.blocks import Notifier, credentials
from flows.deploy.catalogue import (
    COLLISION_STRATEGY,
    COORDINATOR,
    TAG,
    Automation,
    Deployment,
    Plan,
    Pool,
    made_for,
    run_tag,
    shareable,
)
from flows.deploy.pages import PAGE, pages
from photon_core.errors import FederationError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def apply(plan: Plan, dry_run: bool = False, prune: bool = False) -> list[str]:
    """Create and update the plan's objects on the server of PREFECT_API_URL.

    Args:
        plan: plan of the federation.
        dry_run: flag: change nothing, only list what would change.
        prune: flag: remove the run's objects that the plan does not name; objects of other runs are kept.

    Returns:
        A line for each pool, deployment and automation.

    Raises:
        FederationError: a name is used by something else, or a block that the file names does not exist.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        applier = _Applier(client, plan, dry_run)
        return [*applier.apply(), *applier.leftovers(prune)]


class _Applier:
    def __init__(self, client: "SyncPrefectClient", plan: Plan, dry_run: bool) -> None:
        self.client, self.plan, self.dry_run = client, plan, dry_run

    def apply(self) -> Iterator[str]:
        """Check for conflicts, then apply pools, deployments and automations, in this order."""
        if self.plan.credentials:
            credentials(self.client, self.plan.credentials)
        there = {pool.name: self._pool(pool) for pool in self.plan.pools}
        found = {wanted.full_name: self._deployment(wanted) for wanted in self.plan.deployments}
        for pool in self.plan.pools:
            yield self._apply_pool(pool, there[pool.name])
        for wanted in self.plan.deployments:
            yield self._apply_deployment(wanted, found[wanted.full_name])
        named = {automation.name: automation for automation in self._automations()}
        for automation in self.plan.automations:
            yield self._apply_automation(automation, named.get(automation.name))

    def _line(self, verb: str, what: str) -> str:
        future = {"created": "would create", "updated": "would update", "removed": "would remove"}
        return f"{future.get(verb, verb) if self.dry_run else verb} {what}"

    # ---- work pools

    def _pool(self, wanted: Pool) -> Any:
        from prefect.exceptions import ObjectNotFound

        try:
            there = self.client.read_work_pool(wanted.name)
        except ObjectNotFound:
            return None
        if there.type != wanted.type:
            raise FederationError(
                f"the work pool '{wanted.name}' exists and has type {there.type}, not {wanted.type}; "
                "give the site another pool, correct its pool_type, or delete the pool"
            )
        self._check_owner(wanted, there.description)
        return there

    def _check_owner(self, wanted: Pool, description: str | None) -> None:
        """Refuse another run's pool, unless every file names it: its worker would get this run's work."""
        (run, users), ours = made_for(description), made_for(wanted.description)[1]
        role = f"was made for {users or 'a part'} of" if run else "has deployments of"
        if run == self.plan.run:
            others = COORDINATOR in users and COORDINATOR not in ours
            free = not others or wanted.shareable
        elif run:
            free = wanted.shareable and shareable(description)
        else:  # a foreign pool, whose description does not name a run
            run = "" if wanted.shareable else self._other_run(wanted.name)
            free = not run
        if free:
            return
        raise FederationError(
            f"the work pool '{wanted.name}' of {ours} {role} run '{run}': one worker would get the work of both. "
            f"Write pool: with another name in this file, such as {wanted.name}-{self.plan.run}. To share the "
            f"pool, write pool: {wanted.name} in each file, and photon deploy with the file of '{run}' first. "
            "Or delete the pool"
        )

    def _apply_pool(self, wanted: Pool, there: Any) -> str:
        from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate

        what = f"work pool {wanted.name} ({wanted.type})"
        if there is not None:
            ours = made_for(there.description)[0] == self.plan.run
            if not ours or there.description == wanted.description:
                return self._line("unchanged", what)
            if not self.dry_run:
                self.client.update_work_pool(wanted.name, WorkPoolUpdate(description=wanted.description))
            return self._line("updated", what)
        if not self.dry_run:
            self.client.create_work_pool(
                WorkPoolCreate(
                    name=wanted.name,
                    type=wanted.type,
                    description=wanted.description,
                    base_job_template=_job_template(wanted.type),
                )
            )
        return self._line("created", what)

    # ---- deployments

    def _deployment(self, wanted: Deployment) -> Any:
        from prefect.exceptions import ObjectNotFound

        try:
            there = self.client.read_deployment_by_name(wanted.full_name)
        except ObjectNotFound:
            return None
        if not set(self.plan.tags) <= set(there.tags):
            raise FederationError(
                f"the deployment '{wanted.full_name}' exists and does not belong to this run "
                f"(tags: {', '.join(there.tags) or 'none'}); rename the run or the site"
            )
        return there

    def _apply_deployment(self, wanted: Deployment, there: Any) -> str:
        what = f"deployment {wanted.full_name} on {wanted.pool}"
        what += f", {wanted.cron} {wanted.timezone}" if wanted.cron else ""
        request = _request(wanted)
        if there is not None and _same_deployment(request, there):
            return self._line("unchanged", what)
        if not self.dry_run:
            if there is not None and request["schedules"] and there.schedules:
                # a manually paused schedule stays paused
                request["schedules"][0].active = there.schedules[0].active
            flow_id = self.client.create_flow_from_name(wanted.flow)
            self.client.create_deployment(flow_id=flow_id, **request)
        return self._line("created" if there is None else "updated", what)

    # ---- automations

    def _automations(self) -> list[Any]:
        """Automations of this run, found by their names."""
        found = pages(lambda offset: self.client.read_automations(limit=PAGE, offset=offset))
        return [automation for automation in found if automation.name.startswith(self.plan.prefix)]

    def _apply_automation(self, wanted: Automation, there: Any) -> str:
        from prefect.events.schemas.automations import AutomationCore

        action = wanted.action or Notifier(self.client, self.plan).action(wanted.message)
        core = AutomationCore.model_validate(
            {
                "name": wanted.name,
                "description": wanted.description,
                "tags": list(self.plan.tags),
                "trigger": wanted.trigger,
                "actions": [action],
                "enabled": there.enabled if there is not None else True,
            }
        )
        if there is not None and _dumped(core) == _dumped(there):
            return self._line("unchanged", f"automation {wanted.name}")
        if not self.dry_run:
            if there is None:
                self.client.create_automation(core)
            else:
                self.client.update_automation(there.id, core)
        return self._line("created" if there is None else "updated", f"automation {wanted.name}")

    # ---- what the file no longer has

    def leftovers(self, prune: bool) -> list[str]:
        """Remove, or only list, this run's objects on the server that the plan does not name."""
        verb = "removed" if prune else "left over (--prune removes it):"
        doing = prune and not self.dry_run
        lines = []
        kept = {automation.name for automation in self.plan.automations}
        for automation in [a for a in self._automations() if a.name not in kept]:
            if doing:
                self.client.delete_automation(automation.id)
            lines.append(self._line(verb, f"automation {automation.name}"))
        going = list(self._old_deployments())
        for name, deployment in going:
            if doing:
                self.client.delete_deployment(deployment.id)
            lines.append(self._line(verb, f"deployment {name}"))
        for pool in self._old_pools():
            if others := self._users(pool.name) - {deployment.id for _, deployment in going}:
                lines.append(f"kept work pool {pool.name}: {len(others)} other deployments use it")
                continue
            if doing:
                self.client.delete_work_pool(pool.name)
            lines.append(self._line(verb, f"work pool {pool.name}"))
        return lines

    def _old_deployments(self) -> Iterator[tuple[str, Any]]:
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

        mine = DeploymentFilter(tags=DeploymentFilterTags(all_=list(self.plan.tags)))
        kept = {deployment.full_name for deployment in self.plan.deployments}
        flows: dict[Any, str] = {}
        for deployment in pages(
            lambda offset: self.client.read_deployments(deployment_filter=mine, limit=PAGE, offset=offset)
        ):
            if deployment.flow_id not in flows:
                flows[deployment.flow_id] = self.client.read_flow(deployment.flow_id).name
            name = f"{flows[deployment.flow_id]}/{deployment.name}"
            if name not in kept:
                yield name, deployment

    def _old_pools(self) -> list[Any]:
        kept = {pool.name for pool in self.plan.pools}
        found = pages(lambda offset: self.client.read_work_pools(limit=PAGE, offset=offset))
        return [pool for pool in found if pool.name not in kept and made_for(pool.description)[0] == self.plan.run]

    def _other_run(self, pool: str) -> str:
        """Another run whose deployments are on a pool; empty if there is none."""
        tags = [tag for deployment in self._on(pool) if TAG in deployment.tags for tag in deployment.tags]
        prefix = run_tag("")
        runs = {tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)} - {self.plan.run}
        return min(runs, default="")

    def _users(self, pool: str) -> set[Any]:
        """Ids of all deployments on a pool, of any run."""
        return {deployment.id for deployment in self._on(pool)}

    def _on(self, pool: str) -> list[Any]:
        from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

        on = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        return list(
            pages(lambda offset: self.client.read_deployments(work_pool_filter=on, limit=PAGE, offset=offset))
        )


def _job_template(pool_type: str) -> dict[str, Any]:
    """The process worker's template. Workers of other types fill in theirs when they start."""
    if pool_type != "process":
        return {}
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def _request(wanted: Deployment) -> dict[str, Any]:
    """Arguments of the client's create_deployment, which updates an existing one."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    from photon_core.run.provenance import versions

    flow = load_flow_from_entrypoint(wanted.entrypoint, use_placeholder_flow=False)
    assert flow.name == wanted.flow, f"{wanted.entrypoint} is named {flow.name}"
    schedules = [CronSchedule(cron=wanted.cron, timezone=wanted.timezone)] if wanted.cron else []
    waiting = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(COLLISION_STRATEGY))
    return {
        "name": wanted.name,
        "version": versions()["photon"],
        "entrypoint": wanted.entrypoint,
        "work_pool_name": wanted.pool,
        "parameters": wanted.parameters,
        "tags": list(wanted.tags),
        "job_variables": wanted.job_variables,
        "description": wanted.description,
        "schedules": [DeploymentScheduleCreate(schedule=schedule, active=True) for schedule in schedules],
        "concurrency_limit": wanted.limit,
        "concurrency_options": waiting if wanted.limit else None,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "pull_steps": [],
    }


def _same_deployment(request: dict[str, Any], there: Any) -> bool:
    limit = there.global_concurrency_limit
    options = request["concurrency_options"]
    strategy = there.concurrency_options.collision_strategy if there.concurrency_options else None
    plain = ("version", "entrypoint", "work_pool_name", "parameters", "job_variables", "description")
    return (
        all(request[name] == getattr(there, name) for name in (*plain, "enforce_parameter_schema"))
        and set(request["tags"]) == set(there.tags)
        and request["concurrency_limit"] == (limit.limit if limit else None)
        and (options.collision_strategy if options else None) == strategy
        and [s.schedule for s in request["schedules"]] == [s.schedule for s in there.schedules]
        and request["parameter_openapi_schema"] == there.parameter_openapi_schema
        and not there.pull_steps
    )


def _dumped(automation: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = automation.model_dump(
        mode="json", include={"name", "description", "enabled", "tags", "trigger", "actions"}
    )
    trigger = dumped["trigger"]
    dumped["tags"] = sorted(dumped["tags"])
    for name in ("after", "expect", "for_each"):
        trigger[name] = sorted(trigger[name])
    return dumped
