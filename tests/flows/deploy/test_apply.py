"""A real server brought in line with a plan: once, again, after changes, and beside another run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.deploy.apply import apply
from flows.deploy.catalogue import plan
from photon_core.errors import FederationError
from schemas.federation import Federation
from schemas.view import view_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
DEPLOY: dict[str, Any] = {"schedule": "0 0 1 1 *", "notify": {"block": "webhook/hook"}}


def verbs(lines: list[str]) -> set[str]:
    return {line.split()[0] for line in lines}


def changed(federation: Federation, **sections: Any) -> Federation:
    return Federation.model_validate({**federation.model_dump(mode="json"), **sections})


@pytest.fixture
def client() -> Iterator[Any]:
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client

    Webhook(url="http://127.0.0.1:9/hook").save("hook", overwrite=True)
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def load(write_federation: Callable[..., Path]) -> Callable[..., Federation]:
    """As write_federation. Each site has a pool named after its run, unless the test names one."""
    from schemas.reading.load import load_federation

    def make(sites: tuple[str, ...], **sections: Any) -> Federation:
        own = {site: f"{sections['run']}-{site}" for site in sites}
        return load_federation(write_federation(sites, **{"pools": own, **sections}))

    return make


def test_twice_changes_nothing(load: Callable[..., Federation], client: Any) -> None:
    wanted = plan(load(("a",), run="twice", deploy=DEPLOY))
    dry = apply(wanted, dry_run=True)
    assert verbs(dry) == {"would"} and "would create deployment federated-round/twice on photon-twice" in dry[2]
    assert verbs(apply(wanted)) == {"created"}
    assert verbs(apply(wanted)) == verbs(apply(wanted, dry_run=True)) == verbs(apply(wanted, prune=True)) == {
        "unchanged"
    }  # fmt: skip
    assert not any(automation.name.startswith("photon/other/") for automation in client.read_automations())


def test_what_is_there_is_what_was_planned(load: Callable[..., Federation], client: Any) -> None:
    federation = load(("a",), run="there", deploy=DEPLOY)
    apply(plan(federation))
    there = client.read_deployment_by_name("federated-round/there")
    assert there.entrypoint == "flows.federated_round:federated_round" and not there.pull_steps
    assert there.global_concurrency_limit.limit == 1
    assert there.concurrency_options.collision_strategy == "ENQUEUE"
    assert [schedule.schedule.cron for schedule in there.schedules] == ["0 0 1 1 *"]
    assert client.read_work_pool("photon-there").type == "process"
    # the server accepts the parameters that the round flow gives a site
    site = client.read_deployment_by_name("site-round/there-a")
    run = client.create_flow_run_from_deployment(site.id, parameters={**site.parameters, "t": 1})
    assert {"photon", "run:there", "site:a"} <= set(run.tags)
    client.delete_flow_run(run.id)


def test_changes(load: Callable[..., Federation], client: Any) -> None:
    federation = load(("a",), run="changes", deploy=DEPLOY)
    apply(plan(federation))
    name = "federated-round/changes"
    there = client.read_deployment_by_name(name)
    client.update_deployment_schedule(there.id, there.schedules[0].id, active=False)
    faster = changed(federation, deploy={**DEPLOY, "heartbeat": 30})
    assert {line.split()[1] for line in apply(plan(faster)) if line.startswith("updated")} == {"deployment"}
    there = client.read_deployment_by_name(name)
    assert there.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert not there.schedules[0].active  # a paused schedule stays paused
    lines = apply(plan(changed(federation, deploy={})), prune=True)
    assert "removed automation photon/changes/site left out" in lines
    assert client.read_deployment_by_name(name).schedules == []


def test_prune_removes_this_runs_and_nothing_else(load: Callable[..., Federation], client: Any) -> None:
    pools = {"a": "prune-a", "b": "photon-b"}
    both, other = (
        load(("a", "b"), run="prune", pools=pools),
        load(("b",), run="prune-not", pools=pools, folder="other"),
    )
    apply(plan(both))
    apply(plan(other))  # its site b works for both runs, on one pool, as each file says
    sites = [view_of(both, "a").section.model_dump(mode="json")]
    fewer = plan(changed(both, sites=sites, deploy={"pool": "prune-a"}))
    named = apply(fewer)
    assert "left over (--prune removes it): deployment site-round/prune-b" in named
    assert client.read_deployment_by_name("site-round/prune-b")
    lines = apply(fewer, prune=True)
    gone = {"deployment site-round/prune-b", "deployment prepare-site/prune-b", "work pool photon-prune"}
    assert {f"removed {what}" for what in gone} <= set(lines)
    assert "kept work pool photon-b: 3 other deployments use it" in lines
    assert verbs(apply(plan(other))) == {"unchanged"}


def test_names_of_others_are_refused(load: Callable[..., Federation]) -> None:
    apply(plan(load(("b-c",), run="a")))
    with pytest.raises(FederationError, match=r"'site-round/a-b-c' exists and does not belong to this run"):
        apply(plan(load(("c",), run="a-b")))
    with pytest.raises(FederationError, match="'a-b-c' exists and has type process, not docker"):
        apply(plan(load(("b-c",), run="e", pools={"b-c": "a-b-c"}, deploy={"pool_type": "docker"})))


def test_no_two_runs_share_a_pool_unless_each_file_names_it(load: Callable[..., Federation], client: Any) -> None:
    """Point 11: flow runs once landed on the machine of another run's site of the same name."""
    apply(plan(load(("oslo",), run="one", pools={})))
    before = client.read_deployments()
    refused = r"'photon-oslo' of site oslo was made for site oslo of run 'one'.* pool: photon-oslo in each"
    with pytest.raises(FederationError, match=refused):
        apply(plan(load(("oslo",), run="two", pools={})))
    shared = {"oslo": "photon-oslo"}
    with pytest.raises(FederationError, match=r"such as photon-oslo-two\. "):
        apply(plan(load(("oslo",), pools=shared, run="two")))
    with pytest.raises(FederationError, match="'photon-oslo' of the coordinator was made for site oslo of run"):
        apply(plan(load(("c",), run="oslo", pools={})))
    with pytest.raises(
        FederationError, match="'photon-one' of site one was made for the coordinator of run 'one'"
    ):
        apply(plan(load(("one",), run="two", pools={})))
    assert client.read_deployments() == before, "nothing was changed"
    apply(plan(load(("oslo",), pools={"oslo": "oslo-two"}, run="two")))
    assert "updated work pool photon-oslo (process)" in apply(plan(load(("oslo",), pools=shared, run="one")))
    assert "unchanged work pool photon-oslo (process)" in apply(plan(load(("oslo",), pools=shared, run="two")))
    assert verbs(apply(plan(load(("oslo",), pools=shared, run="one")))) == {"unchanged"}


def test_a_pool_that_a_person_made_is_one_runs_too(load: Callable[..., Federation], client: Any) -> None:
    """`prefect work-pool create photon-ulm --type process`: nothing in it says whose work it gets."""
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name="photon-ulm", type="process"))
    apply(plan(load(("ulm",), run="three", pools={})))
    with pytest.raises(FederationError, match=r"'photon-ulm' of site ulm has deployments of run 'three'"):
        apply(plan(load(("ulm",), run="four", pools={})))
    assert verbs(apply(plan(load(("ulm",), run="three", pools={})))) == {"unchanged"}
    apply(plan(load(("ulm",), run="four", pools={"ulm": "photon-ulm"})))


def test_a_coordinators_pool_is_no_sites(load: Callable[..., Federation]) -> None:
    """A worker that serves the pool for the rounds would train, too."""
    apply(plan(load(("a",), run="head")))
    moved = {"deploy": {"pool": "elsewhere"}}
    with pytest.raises(
        FederationError, match="'photon-head' of site head was made for the coordinator of run 'head'"
    ):
        apply(plan(load(("head",), run="head", pools={}, **moved)))
    apply(plan(load(("head",), run="head", pools={"head": "photon-head"}, **moved)))


def test_blocks(load: Callable[..., Federation], client: Any) -> None:
    from prefect.blocks.system import Secret

    from flows.deploy.blocks import credentials

    federation = load(("a",), run="blocks", store="s3://b/x", storage={"block": "secret/s3"})
    with pytest.raises(FederationError, match="server has no block 'secret/s3'; create it with the keys aws_acc"):
        apply(plan(federation))
    Secret(value={"aws_access_key_id": "me"}).save("s3")
    with pytest.raises(FederationError, match="contains no aws_secret_access_key"):
        apply(plan(federation))
    Secret(value={"aws_access_key_id": "me", "aws_secret_access_key": "hush"}).save("s3", overwrite=True)
    apply(plan(federation))
    assert credentials(client, "secret/s3") == {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush"}
    assert "hush" not in client.read_deployment_by_name("site-round/blocks-a").model_dump_json()
    with pytest.raises(FederationError, match="no block 'slack-webhook/ops'"):
        apply(plan(changed(federation, deploy={"notify": {"block": "slack-webhook/ops"}})))
