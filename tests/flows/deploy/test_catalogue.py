"""The plan of a federation on a server: derived from the file alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.deploy.catalogue import SIGNS_OF_LIFE, Plan, plan
from schemas.federation import Federation
from schemas.reading.load import load_federation
from tests.worlds import write_world

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "federation.yaml"


@pytest.fixture(scope="module")
def example() -> Federation:
    return load_federation(EXAMPLE)


@pytest.fixture(scope="module")
def planned(example: Federation) -> Plan:
    return plan(example)


def changed(federation: Federation, **sections: Any) -> Federation:
    return Federation.model_validate({**federation.model_dump(mode="json"), **sections})


def test_planning_needs_no_prefect() -> None:
    code = "import sys, flows.deploy.catalogue; print('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_pools(planned: Plan) -> None:
    assert [pool.name for pool in planned.pools] == [
        *("photon-notes", "photon-berlin", "photon-lyon", "photon-porto", "turin-gpu")
    ]
    assert {pool.description.split("\n")[0] for pool in planned.pools} == {planned.marker}


def test_sites_may_share_a_pool(example: Federation) -> None:
    sites = [{**site.model_dump(mode="json"), "pool": "photon-notes"} for site in example.sites]
    (pool,) = plan(changed(example, sites=sites)).pools
    assert "Of the coordinator, site berlin, site lyon, site porto, site turin." in pool.description


def test_deployments(planned: Plan) -> None:
    names = [deployment.full_name for deployment in planned.deployments]
    assert names[:4] == ["federated-round/notes", "federated-run/notes", "rerun-site/notes", "rollback/notes"]
    assert names[4:7] == ["site-round/notes-berlin", "site-evaluate/notes-berlin", "prepare-site/notes-berlin"]
    assert len(names) == len(set(names)) == 4 + 3 * 4


def test_a_tree_has_deployments_at_its_members_and_for_its_parent(tmp_path: Path) -> None:
    block = {"storage": {"endpoint_url": "http://127.0.0.1:9", "block": "aws-credentials/world"}}
    file = write_world(tmp_path, {"north": ("a",)}, root={"store": "s3://bucket/x", **block})
    (fit, evaluate) = plan(load_federation(file)).deployments[4:]
    assert (fit.full_name, evaluate.full_name) == ("fit/world-north", "fit-evaluate/world-north")
    assert fit.pool == evaluate.pool == "photon-north"
    assert (fit.parameters["member"], fit.parameters["deployed"]) == ("north", True)
    assert fit.entrypoint == "flows.federated_round:fit" and "site:north" in fit.tags
    assert not any(name.startswith("AWS") for name in fit.job_variables["env"]), "a member has its own credentials"
    north = plan(load_federation(tmp_path / "north.yaml")).deployments
    assert north[-1].full_name == "evaluate-members/north" and north[-1].pool == "photon-north"


def test_only_rounds_and_runs_wait_for_each_other_and_only_rounds_have_a_schedule(planned: Plan) -> None:
    assert [d.flow for d in planned.deployments if d.limit == 1] == ["federated-round", "federated-run"]
    assert [(d.flow, d.cron, d.timezone) for d in planned.deployments if d.cron] == [
        ("federated-round", "0 */3 * * *", "Europe/Berlin")
    ]


def test_parameters_are_the_whole_file(example: Federation, planned: Plan) -> None:
    for deployment in planned.deployments:
        assert Federation.model_validate(deployment.parameters["federation"]) == example
    round_, run, rerun, back, site, *_ = planned.deployments
    assert round_.parameters["deployed"] is run.parameters["deployed"] is True
    assert "deployed" not in {**rerun.parameters, **back.parameters}
    assert site.parameters["site"] == "berlin"


def test_tags(planned: Plan) -> None:
    assert planned.deployments[0].tags == ("photon", "run:notes", "protocol:1")
    assert planned.deployments[-1].tags == ("photon", "run:notes", "protocol:1", "site:turin")


def test_job_variables(planned: Plan) -> None:
    environment = planned.deployments[-1].job_variables["env"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert environment["PREFECT_RESULTS_PERSIST_BY_DEFAULT"] == "false"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in planned.deployments[4].job_variables["env"]


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ("aws-credentials/lab", "{{ prefect.blocks.aws-credentials.lab.aws_secret_access_key }}"),
        ("json/lab", "{{ prefect.blocks.json.lab.value.aws_secret_access_key }}"),
    ],
)
def test_credentials_are_references(example: Federation, block: str, key: str) -> None:
    storage = {**example.storage.model_dump(), "block": block}
    for deployment in plan(changed(example, storage=storage)).deployments:
        assert deployment.job_variables["env"]["AWS_SECRET_ACCESS_KEY"] == key


def test_zombies(planned: Plan) -> None:
    zombies = planned.automations[0]
    assert (zombies.name, zombies.trigger["within"]) == ("photon/notes/zombies", 300)
    assert zombies.trigger["match_related"]["prefect.resource.id"] == "prefect.tag.run:notes"
    assert "prefect.flow-run.Running" not in SIGNS_OF_LIFE  # it follows the first heartbeat at once


def test_notifications(example: Federation, planned: Plan) -> None:
    assert [a.name for a in planned.automations[2:]] == ["photon/notes/round failed", "photon/notes/site left out"]
    assert "photon.site.notes.lyon" in planned.automations[3].trigger["match"]["prefect.resource.id"]
    quiet = changed(example, deploy={**example.deploy.model_dump(), "notify": None})
    assert [a.name for a in plan(quiet).automations] == ["photon/notes/zombies", "photon/notes/never started"]
