"""The prefect.yaml of a federation: the repository's is the example's; `prefect deploy` makes the same of it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deploy.catalogue import plan
from flows.deploy.prefect_yaml import prefect_yaml
from photon_core.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import load_federation
from tests.federations import sample, site

ROOT = Path(__file__).parents[3]
MAKE = "photon deploy examples/federation.yaml --yaml"
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SECRET = "hush-hush"


def test_the_repositorys_is_the_examples() -> None:
    made = prefect_yaml(plan(load_federation(ROOT / "examples" / "federation.yaml")))
    assert made == (ROOT / "prefect.yaml").read_text("utf-8"), f"write it again: {MAKE} > prefect.yaml"


def test_the_command_prints_it_without_a_server() -> None:
    command = [sys.executable, "-m", "photon_cli", *MAKE.split()[1:]]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "prefect.yaml").read_text("utf-8")


@pytest.mark.parametrize("other", ["--dry-run", "--prune"])
def test_the_command_refuses_what_asks_a_server(other: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "photon_cli", *MAKE.split()[1:], other], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--yaml needs no server" in done.stderr and not done.stdout


def test_each_text_comes_back_as_it_was() -> None:
    """YAML 1.1 reads no, 1e3, 0x10, 12:30 and dates in unexpected ways."""
    odd = [
        "no",
        "1e3",
        "0x10",
        "12:30",
        "2026-01-31",
        "~",
        "",
        "a: b #c",
        "* */2",
        "{{no template",
        "Zürich\n\u2028",
    ]
    streams = {
        "state_dir": "/12:30/{x}/é",
        "job_variables": {"env": {f"V{i}": text for i, text in enumerate(odd)}},
    }
    federation = sample(run="odd", seed=10**9, sites=[site("no", **streams), site("1e3"), site("a.b")])
    wanted = plan(federation)
    for planned, read in zip(wanted.deployments, yaml.safe_load(prefect_yaml(wanted))["deployments"], strict=True):
        assert read["parameters"] == planned.parameters
        assert read["work_pool"] == {"name": planned.pool, "job_variables": planned.job_variables}
        assert (read["name"], read["tags"]) == (planned.name, list(planned.tags))


def test_the_header_names_pools_and_automations() -> None:
    wanted = plan(sample(deploy={"pool_type": "docker", "notify": {"block": "slack-webhook/ops"}}))
    header = prefect_yaml(wanted).split("\n\npull:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "#   prefect work-pool create photon-r --type docker" in header
    assert len(wanted.automations) == 4 and all(a.name in header for a in wanted.automations)
    assert "Job variables" not in header


def test_references_to_blocks_are_left_out_and_named() -> None:
    variables = {
        "env": {"HF_TOKEN": "{{ prefect.blocks.secret.hf }}", "N": "1\n# {{ $X }}\nsites: []", "KEPT": "yes"},
        "volumes": ["/a:/a", "{{ prefect.variables.disk }}:/b"],
        "disk": {"$ref": {"block_document_id": "00000000-0000-0000-0000-000000000000"}},
    }
    sites = [site("a", job_variables=variables), site("b")]
    federation = sample(store="s3://b/x", storage={"block": "secret/s3"}, sites=sites)
    text = prefect_yaml(plan(federation))
    header, body = text.split("\n\npull:")
    for name in ("env.AWS_ACCESS_KEY_ID", "env.HF_TOKEN", "env.N", "volumes", "disk"):
        assert header.count(f'#   "{name}": ') == 1
    assert "{{" not in body and "$ref" not in body and all(line[0] == "#" for line in header.splitlines())
    ours = yaml.safe_load(text)["deployments"][-1]
    (theirs,) = [
        d
        for d in yaml.safe_load(text)["deployments"]
        if d["entrypoint"].endswith("site_round") and d["name"] == "r-a"
    ]
    assert theirs["work_pool"]["job_variables"]["env"]["KEPT"] == "yes"
    assert "AWS_ACCESS_KEY_ID" not in ours["work_pool"]["job_variables"]["env"]
    assert theirs["parameters"]["federation"]["sites"][0]["job_variables"] == {"env": {"KEPT": "yes"}}


def test_a_template_elsewhere_is_refused() -> None:
    there = site("a", state_dir="/srv/{{ HOME }}")
    with pytest.raises(FederationError, match=r"^sites\[0\]\.state_dir: contains a template .* without --yaml$"):
        prefect_yaml(plan(sample(sites=[there])))


@pytest.fixture
def client() -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def prefect_deploy(client: Any, federation: Federation, folder: Path) -> dict[str, Any]:
    """Create the work pools that the header names, and have Prefect deploy the file."""
    from prefect.client.schemas.actions import WorkPoolCreate

    wanted = plan(federation)
    for pool in wanted.pools:
        client.create_work_pool(WorkPoolCreate(name=pool.name, type=pool.type), overwrite=True)
    (folder / "prefect.yaml").write_text(prefect_yaml(wanted), "utf-8")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return deployed(client, federation)


def deployed(client: Any, federation: Federation) -> dict[str, Any]:
    """Everything that the server has of the run's deployments, but for ids and times."""
    names = [wanted.full_name for wanted in plan(federation).deployments]
    return {name: lasting(client.read_deployment_by_name(name).model_dump(mode="json")) for name in names}


def lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: lasting(v) for k, v in value.items() if k not in ("created", "updated", "last_polled", "status")
        }
    if isinstance(value, list):
        return [lasting(item) for item in value]
    return ID.sub("(an id)", value) if isinstance(value, str) else value


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_prefect_deploys_the_same(client: Any, tmp_path: Path) -> None:
    from flows.deploy.apply import apply

    sites = [site("a", state_dir="/Zürich: #1", job_variables={"env": {"N": "0x10"}}), site("b", pool="shared")]
    deploy = {"schedule": "0 0 1 1 *", "timezone": "Europe/Berlin"}
    federation = sample(run="same", sites=sites, deploy=deploy, start={"site": "a", "checkpoint": "/c"})
    theirs = prefect_deploy(client, federation, tmp_path)
    changes = [line for line in apply(plan(federation), dry_run=True) if "deployment" in line]
    assert len(changes) == 4 + 4 + 3 and [line for line in changes if not line.startswith("unchanged")] == []
    for name in theirs:
        client.delete_deployment(client.read_deployment_by_name(name).id)
    apply(plan(federation))
    ours = deployed(client, federation)
    assert [(name, key) for name in ours for key in ours[name] if ours[name][key] != theirs[name][key]] == []


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_no_secret_reaches_the_deployments(client: Any, tmp_path: Path) -> None:
    from prefect.blocks.system import Secret

    Secret(value={"aws_access_key_id": "me", "aws_secret_access_key": SECRET}).save("yaml", overwrite=True)
    there = site("a", job_variables={"env": {"A_TOKEN": "{{ prefect.blocks.secret.yaml.aws_secret_access_key }}"}})
    federation = sample(run="hush", store="s3://b/x", storage={"block": "secret/yaml"}, sites=[there])
    made = prefect_deploy(client, federation, tmp_path)
    assert SECRET not in str(made) and "TOKEN" not in str(made)
