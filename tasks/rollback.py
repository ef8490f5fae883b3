"""The coordinator's step that rolls back to an earlier round."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from photon_core.run import rollback
from photon_core.run.line import newest
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tasks.coordinator import show
from tasks.runtime import Runtime


@task(task_run_name="roll back to round {to}", cache_policy=NO_CACHE)
def roll_back(runtime: Runtime, federation: Federation, to: int, reason: str) -> RoundManifest:
    """Commit the rollback and publish it like any other round. A retry finds what this flow run has committed."""
    run, mine = run_of(federation), f"Prefect flow run {flow_run.id}"
    with runtime.log.step("roll back"):
        manifest = newest(run)
        if manifest is None or not manifest.who.endswith(mine):
            manifest = rollback.roll_back(run, federation, to, reason, f"{rollback.user()}, {mine}")
        show(runtime, federation, manifest)
        return manifest
