"""The sections storage and deploy: defaults, options for the store, wrong values with their messages."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.sections.cron import cron_problem
from schemas.view import view_of

FILE: dict[str, Any] = {
    "run": "r",
    "store": "s3://bucket/rounds",
    "tokenizer": "bytes",
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2},
    "rounds": {"count": 5},
    "local": {"steps": 10, "batch_size": 2},
    "sites": [{"name": "a", "streams": [{"name": "s", "source": "/s.txt"}]}],
}


def load(tmp_path: Path, **sections: Any) -> Federation:
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump({**FILE, **sections}, sort_keys=False))
    return load_federation(file)


def test_defaults(tmp_path: Path) -> None:
    federation = load(tmp_path)
    assert (federation.coordinator_pool, view_of(federation, "a").section.work_pool) == ("photon-r", "photon-a")
    assert view_of(federation, "a").pool_type == "process"
    assert (federation.deploy.heartbeat, federation.deploy.zombie_after) == (60, 300)
    assert federation.storage.store_options() == {}


def test_options_for_the_store(tmp_path: Path) -> None:
    given = {"endpoint_url": "http://127.0.0.1:9000", "region": "eu-central-1", "single_writer": True}
    assert load(tmp_path, storage=given).storage.store_options() == {
        "endpoint_url": "http://127.0.0.1:9000",
        "client_kwargs": {"region_name": "eu-central-1"},
        "single_writer": True,
    }
    assert load(tmp_path, storage={"profile": "lab"}).storage.store_options() == {"profile": "lab"}
    assert load(tmp_path, storage={"block": "aws-credentials/lab"}).storage.store_options() == {}


def test_a_site_chooses_its_own_pool(tmp_path: Path) -> None:
    site = {**FILE["sites"][0], "pool": "gpu", "pool_type": "kubernetes", "job_variables": {"image": "photon:1"}}
    federation = load(tmp_path, sites=[site], deploy={"pool": "head"})
    assert (federation.coordinator_pool, view_of(federation, "a").section.work_pool) == ("head", "gpu")
    assert (federation.deploy.pool_type, view_of(federation, "a").pool_type) == ("process", "kubernetes")


def test_a_dump_means_the_same(tmp_path: Path) -> None:
    federation = load(tmp_path, deploy={"schedule": "0 * * * *", "notify": {"block": "slack-webhook/ops"}})
    assert Federation.model_validate(federation.model_dump(mode="json")) == federation


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"deploy": {"heartbeat": 10}}, "deploy.heartbeat: 10 is out of range; write a number of at least 30"),
        ({"deploy": {"zombie_after": "1m"}}, "60 s is not more than the heartbeat's 60 s"),
        ({"deploy": {"schedule": "hourly"}}, "deploy.schedule: 'hourly' has 1 fields"),
        ({"deploy": {"schedule": "@noon"}}, "is not one of @hourly"),
        ({"deploy": {"timezone": "Mars/Base"}}, "deploy.timezone: 'Mars/Base' is not a time zone"),
        ({"deploy": {"timezone": "../UTC"}}, "is not a time zone"),
        ({"deploy": {"pool_type": "k8s"}}, "is not one of process, docker, kubernetes"),
        ({"deploy": {"notify": {}}}, "deploy.notify.block: missing"),
        (
            {"deploy": {"notify": {"webhook": "https://a.org/x"}}},
            "save the address in a block of the Prefect server",
        ),
        ({"deploy": {"notify": {"block": "ops"}}}, "write its type and name"),
        ({"storage": {"endpoint_url": "minio:9000"}}, "storage.endpoint_url: 'minio:9000' is not an address"),
        (
            {"storage": {"endpoint_url": "https://me:secret@h.org"}},
            "contains the user name or password of a URL; remove it",
        ),
        ({"storage": {"secret_key": "x"}}, "storage.secret_key: unknown key"),
        ({"storage": {"profile": "a", "block": "b/c"}}, "credentials come from one of them"),
        ({"store": "/rounds", "storage": {"region": "x"}}, "storage.region: is for s3:// stores, but store is"),
    ],
)
def test_wrong_values(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError) as failure:
        load(tmp_path, **sections)
    assert message in str(failure.value)
    assert "secret@" not in str(failure.value)


def test_a_pool_has_one_type(tmp_path: Path) -> None:
    sites = [
        {**FILE["sites"][0], "pool": "shared"},
        {**FILE["sites"][0], "name": "b", "pool": "shared", "pool_type": "docker"},
    ]
    with pytest.raises(FederationError, match=r"sites\[b\].pool_type: .*'shared' would have type docker here"):
        load(tmp_path, sites=sites)


def test_environment_is_text(tmp_path: Path) -> None:
    for wrong in ({"env": ["A=1"]}, {"env": {"A": 1}}):
        with pytest.raises(FederationError, match="names to texts"):
            load(tmp_path, sites=[{**FILE["sites"][0], "job_variables": wrong}])


GOOD_CRON = ["0 * * * *", "*/5 0-6 1,15 * mon-fri", "0 3 * jan,jul 7", "@daily", "59 23 31 12 6"]
BAD_CRON = ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *",
            "*/0 * * * *", "a * * * *", "1,,2 * * * *", "@often"]  # fmt: skip


@pytest.mark.parametrize("line", GOOD_CRON)
def test_good_cron_lines(line: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    assert cron_problem(line) is None
    CronSchedule(cron=line)


@pytest.mark.parametrize("line", BAD_CRON)
def test_bad_cron_lines(line: str) -> None:
    assert cron_problem(line)
