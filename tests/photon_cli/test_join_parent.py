"""photon join-parent: what is missing at either server is named, and it finds the pool of its work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_cli.join_parent import join_parent
from photon_cli.prefect.remote import NotReady
from photon_core.errors import FederationError
from schemas.reading.load import load_federation
from tests.worlds import write_world

pytestmark = pytest.mark.slow
Check = Callable[[], str]


@pytest.fixture
def check(tmp_path: Path, prefect_server: str, capsys: pytest.CaptureFixture[str]) -> Check:
    """What `photon join-parent north.yaml --check` prints; the session's server has both federations."""
    file = write_world(tmp_path, {"inland": ("in",)}, root=ROOT, region={"parent": PARENT})
    file = file.with_name("inland.yaml")

    def run(server: str = f"{prefect_server}/api") -> str:
        capsys.readouterr()
        join_parent(load_federation(file), file, server, check_only=True, quiet=False)
        return capsys.readouterr().out

    return run


PARENT = {"store": "store-world", "run": "above", "member": "inland"}
ROOT = {"run": "above", "federations": [{"name": "inland", "federation": "inland.yaml", "pool": "above-inland"}]}


def deploy(file: Path) -> None:
    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    apply(plan(load_federation(file)))


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def test_what_is_missing_is_named_until_both_servers_are_ready(check: Check, tmp_path: Path) -> None:
    with pytest.raises(NotReady) as error:
        check()
    own, parent = str(error.value).splitlines()[1:]
    assert own.startswith("own server: the federation's own Prefect server http://") and own.endswith(
        "has no deployment 'federated-run/inland'. Write there: photon deploy FILE"
    )
    assert "has no deployment 'fit/above-inland'. There, list 'inland' under federations" in parent

    deploy(tmp_path / "inland.yaml")
    deploy(tmp_path / "world.yaml")
    lines = check().splitlines()
    assert [line.split(":")[0] for line in lines] == ["own server", "own store", "parent", "its store"]
    assert "work pool above-inland (process)" in lines[2]

    edit(tmp_path / "inland.yaml", lambda data: data["model"].update(d_model=64))
    with pytest.raises(
        NotReady, match=r"parent: .*inland\.yaml:\d+: model\.d_model: 64, but 32 in run 'above', its"
    ):
        check()
    edit(tmp_path / "inland.yaml", lambda data: data.update(store="elsewhere") or data["model"].update(d_model=32))
    with pytest.raises(
        NotReady, match=r"own server: store is .*store-inland in the deployed file and .*elsewhere in"
    ):
        check()
    edit(tmp_path / "inland.yaml", lambda data: data.update(store="store-inland"))
    edit(tmp_path / "world.yaml", lambda data: data["federations"][0].update(pool="other", pool_type="docker"))
    deploy(tmp_path / "world.yaml")
    with pytest.raises(
        NotReady, match=r"parent: the work pool 'other' at .* has type docker, .* write pool_type: proc"
    ):
        check()


def test_a_name_that_is_no_server_is_refused(check: Check) -> None:
    with pytest.raises(NotReady, match="--server europe: neither a URL nor a Prefect profile"):
        check("europe")


def test_a_federation_without_parent_is_refused(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    with pytest.raises(FederationError, match=r"world\.yaml: parent: missing, so run 'world' is no member"):
        join_parent(load_federation(file), file, "http://127.0.0.1:9/api", check_only=True, quiet=True)


def test_a_block_for_the_parents_store_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path, {"north": ("a",)})
    storage = {"endpoint_url": "http://127.0.0.1:9", "block": "aws-credentials/x"}
    edit(tmp_path / "north.yaml", lambda data: data["parent"].update(store="s3://b/x", storage=storage))
    with pytest.raises(FederationError, match=r"parent\.storage\.block: .*own Prefect server; .* write profile"):
        load_federation(tmp_path / "north.yaml")
