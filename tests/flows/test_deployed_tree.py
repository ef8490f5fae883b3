"""A tree over two real Prefect servers: a root with a site and a region, whose store the root cannot read."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.manifests import RoundManifest
from tests.conftest import topics, write_text
from tests.docs.commands import adapted, commands, run
from tests.docs.commands import start as start_command
from tests.flows.deployment import (
    Deployed,
    Server,
    Workers,
    aggregating,
    crashed_for_good,
    eventually,
    go_on,
    recovered,
    serving,
)
from tests.processes import alive
from tests.s3_server import SECRETS
from tests.worlds import prepare_world, write_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT, NORTH = ("world-rounds", "world-sites"), ("north-rounds", "north-sites")
PAGE = "docs/worldlm.md"
AT_NORTH = {**SECRETS, "AWS_DEFAULT_REGION": "us-east-1"}


def files(folder: Path, region: dict[str, Any], run: str = "world") -> Path:
    """A root with site s, and region north with site a. Returns the root's file. `run` is the root's run."""
    write_text(folder / "text" / "s.jsonl", topics(7, 8))
    site = {"name": "s", "pool": ROOT[1], "state_dir": "sites/s"}
    site["streams"] = [{"name": "text", "source": "text/s.jsonl"}]
    deploy = {"heartbeat": 30, "zombie_after": 60}
    return write_world(
        folder,
        {"north": ("a",)},
        root={
            "run": run,
            "sites": [site],
            "federations": [{"name": "north", "federation": "north.yaml", "pool": "world-north"}],
            "deploy": {**deploy, "pool": ROOT[0]},
        },
        region={
            "run": run.replace("world", "north"),
            "parent": {"store": "store-world", "run": run, "member": "north"},
            "deploy": {**deploy, "pool": NORTH[0]},
            "sites": [
                {
                    "name": "a",
                    "pool": NORTH[1],
                    "state_dir": "sites/a",
                    "streams": [{"name": "text", "source": "text/a.jsonl"}],
                }
            ],
            **region,
        },
    )


@dataclass
class Tree:
    """The deployed root and its region."""

    root: Deployed
    north: Deployed

    @property
    def contributions(self) -> list[Any]:
        """Flow runs of `fit` on the root's server."""
        return [run for run in self.root.flow_runs("site:north") if run.name.startswith("north round")]


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Workers, Workers]]:
    """The root's Prefect server and the region's. Only the region's workers have credentials of the bucket."""
    request.getfixturevalue("prefect_server")  # with which the fork server comes
    request.getfixturevalue("s3_endpoint")  # which sets the credentials that are taken away here
    folder = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch:
        for name in AT_NORTH:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        with serving(Server(folder / "world"), ROOT) as root:
            for name, value in AT_NORTH.items():
                patch.setenv(name, value)
            with serving(Server(folder / "north"), NORTH) as north:
                yield root, north


@pytest.fixture
def tree(
    request: pytest.FixtureRequest,
    servers: tuple[Workers, Workers],
    s3_endpoint: str,
    s3_bucket: str,
    tmp_path: Path,
) -> Iterator[Tree]:
    """Both federations deployed by the command line, and the worker of `photon join-parent`."""
    on_s3 = {"store": f"s3://{s3_bucket}/north", "storage": {"endpoint_url": s3_endpoint}}
    file = files(tmp_path / "there", on_s3, getattr(request, "param", "world"))
    world = prepare_world(file)
    root, north = servers
    here = {"europe": "north", "http://world.example.org:4200": root.server.url}
    _, deploy, _, _, deploy_north, *_, join_parent, _ = (adapted(command, here) for command in commands(PAGE)[8:])
    for workers, command in (root, deploy), (north, deploy_north), (north, f"{join_parent} --check"):
        done = run(command, file.parent, environment(workers))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    worker = start_command(join_parent, file.parent, tmp_path / "worker-north.log", environment(north))
    try:
        yield Tree(
            Deployed(root.server, world.federation), Deployed(north.server, world.children["north"].federation)
        )
    finally:
        worker.terminate()
        worker.wait(60)


def environment(workers: Workers) -> dict[str, str]:
    return workers.server.environment() | (AT_NORTH if workers.server.home.name == "north" else {})


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """run -> hashes of its models, of the same tree in one process."""
    request.getfixturevalue("prefect_server")
    from flows.federated_run import federated_run

    world = prepare_world(files(tmp_path_factory.mktemp("embedded") / "here", {}))
    federated_run(world.federation)
    return {
        node.federation.run: [m.model_sha256 for m in history(run_of(node.federation))]
        for _, node in world.nodes()
    }


def hashes(rounds: list[RoundManifest]) -> list[str]:
    return [manifest.model_sha256 for manifest in rounds]


def test_two_servers_give_the_bits_of_one_process(tree: Tree, embedded: dict[str, list[str]]) -> None:
    """docs/worldlm.md, from its own text."""
    *_, start_run = commands(PAGE)
    assert start_run == "prefect deployment run federated-run/world"
    assert tree.root.ended(tree.root.start_round("federated-run")).is_completed()
    assert hashes(tree.root.rounds()) == embedded["world"]
    assert hashes(tree.north.rounds()) == embedded["north"]
    assert all(set(m.updates) == set(m.evaluations) == {"s", "north"} for m in tree.root.rounds()[1:])
    seen_from_the_parent(tree)


def seen_from_the_parent(tree: Tree) -> None:
    """What the two servers show of one call."""
    assert len(tree.contributions) == 2
    calls = [run for run in tree.north.flow_runs("call:world/1") if run.name == "north"]
    assert len(calls) == 1 and tree.north.state(calls[0]).is_completed()
    assert not [run for run in tree.root.flow_runs() if run.name.startswith("a round")], "a's owner is north alone"


@pytest.mark.long
def test_processes_killed_at_every_commit_leave_the_same_bits(tree: Tree, embedded: dict[str, list[str]]) -> None:
    run = tree.root.start_round("federated-run")
    fits = [kill_entering(tree)]
    kill_site(tree)
    fits.append(kill_contributing(tree, fits[0]))
    clock = kill_committing(tree, run)
    crashed_for_good(tree.root, run, 1)
    tree.root.retry(run)
    assert tree.root.ended(run, tree.root.state(run)).is_completed()
    recovered("the root's process killed while it aggregates, retried", clock)
    assert hashes(tree.root.rounds()) == embedded["world"]
    assert hashes(tree.north.rounds()) == embedded["north"]
    first = tree.root.rounds()[1]
    assert sum("Crashed" in note for note in first.incidents["north"]) == 2
    assert first.updates["north"].attempt == 1 and not first.left_out
    assert any("Crashed" in note for note in tree.north.rounds()[2].incidents["a"])
    assert [m.kind for m in tree.north.rounds()] == ["train", "entry", "train", "entry", "train"]


def kill_entering(tree: Tree) -> Any:
    """The flow run of `fit` whose process is killed before the region's entry is committed."""
    fit = tree.root.found("north round 1")
    pid = tree.root.process_of(fit)
    assert tree.north.run.latest() is None
    os.kill(pid, signal.SIGKILL)
    return fit


def kill_site(tree: Tree) -> None:
    """The site's flow run on the region's server, in the region's first round."""
    tree.north.trainer("a")
    os.kill(tree.north.process_of(tree.north.site_run("a", 2)), signal.SIGKILL)


def kill_contributing(tree: Tree, before: Any) -> Any:
    """The next flow run of `fit`, while it uploads the contribution."""
    fit = eventually(
        lambda: next((run for run in tree.contributions if run.id != before.id), None), "another flow run follows"
    )
    pid = tree.root.process_of(fit)
    folder = Path(tree.root.federation.store) / tree.root.run.site_dir(1, "north", 1)
    eventually(lambda: folder.exists() and any(folder.iterdir()), "the contribution is begun", every=0.001)
    os.kill(pid, signal.SIGKILL)
    return fit


def kill_committing(tree: Tree, run: Any) -> float:
    """The root's process, while it aggregates."""
    pid = tree.root.process_of(run)
    eventually(lambda: aggregating(tree.root), "the root aggregates", every=0.001)
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


@pytest.mark.long
@pytest.mark.parametrize("tree", ["world-2"], indirect=True)
def test_cancelling_the_root_cancels_the_region(tree: Tree) -> None:
    run = tree.root.start_round()
    trainer = tree.north.trainer("a")
    os.kill(trainer, signal.SIGSTOP)  # so that its training does not end before it is cancelled
    family = tree.root.family() | tree.north.family()
    tree.root.cancel(run)
    assert tree.root.ended(run).name == "Cancelled"
    assert {tree.root.ended(fit).name for fit in tree.contributions} == {"Cancelled"}
    assert tree.north.ended(tree.north.found("north-2")).name == "Cancelled"
    go_on([trainer])
    assert tree.north.ended(tree.north.found("a round 2")).name == "Cancelled"
    eventually(lambda: not any(map(alive, family)), "no process is left")
    assert len(tree.root.rounds()) == 1 and len(tree.north.rounds()) == 2, "an entry, and no round"
