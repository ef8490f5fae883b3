"""docs/deploy.md's PostgreSQL as written there: it carries a round of four sites, and sixteen sites at once."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs import commands
from tests.flows.deployment import POOLS, Deployed, Server, Workers, deployed, eventually, serving
from tests.postgres import postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("prefect_server")]
SECONDS = 900.0
ROLE, DATABASE, EXPORT, START = commands.commands("docs/deploy.md")[10:14]


class OnPostgres(Server):
    """A server that is started by the page's commands.

    Args:
        home: of Prefect's settings.
        administrator: settings of psql.
    """

    def __init__(self, home: Path, administrator: dict[str, str]) -> None:
        super().__init__(home)
        self.administrator = administrator

    def environment(self) -> dict[str, str]:
        port = self.administrator["PGPORT"]
        export = commands.adapted(EXPORT, {"5432": port})
        name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
        told = commands.run(f"{export}; echo ${name}", self.home).stdout.strip()
        assert told.startswith("postgresql+asyncpg://") and port in told
        return {**super().environment(), name: told, "PREFECT_SERVER_API_PORT": str(self.port)}

    def start(self) -> None:
        for command in (ROLE, DATABASE):
            done = commands.run(command, self.home, self.administrator)
            assert done.returncode == 0, done.stderr
        command = commands.adapted(START, {"0.0.0.0": "127.0.0.1"})
        self._process = commands.start(command, self.home, self.home / "server.log", self.environment())
        eventually(self._answers, "the server answers")

    def counted(self, table: str) -> int:
        """Rows of a table of Prefect's."""
        query = ["psql", "--dbname", "prefect", "--tuples-only", "--command", f"SELECT count(*) FROM {table}"]
        done = subprocess.run(query, env={**os.environ, **self.administrator}, capture_output=True, check=True)
        return int(done.stdout)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One for the rounds and one for all sites, which share the session's fork server."""
    home = tmp_path_factory.mktemp("on-postgres")
    with postgres() as administrator, serving(OnPostgres(home, administrator), POOLS[:2]) as workers:
        yield workers


def prepared(workers: Workers, folder: Path, count: int) -> Deployed:
    """A deployed federation with this number of sites."""
    sites = tuple(f"s{number}" for number in range(count))
    sections = {"local": {"steps": 1}, "data": {"evaluation_sequences": 2}, "rounds": {"count": 1}}
    return deployed(workers, folder, sites, run=f"sites-{count}", **sections)


def test_a_round_of_four_sites(workers: Workers, tmp_path: Path) -> None:
    four = prepared(workers, tmp_path, 4)
    started = four.start_round()
    assert eventually(lambda: four.rounds()[1:], "round 1 is committed", SECONDS)
    state = four.ended(started)
    made = four.rounds()[1]
    assert state.is_completed() and set(made.updates) == set(made.evaluations) == {"s0", "s1", "s2", "s3"}


def test_sixteen_sites_at_once(workers: Workers, tmp_path: Path) -> None:
    from prefect.deployments import run_deployment

    from tasks import coordinator
    from tasks.runtime import runtime_of

    many = prepared(workers, tmp_path, 16)
    with runtime_of(many.federation) as runtime:
        coordinator.open_run(runtime, many.federation)
    names = [site.name for site in many.federation.sites]
    with many.server.client() as client:
        for name in names:
            deployment = f"site-round/sites-16-{name}"
            run_deployment(deployment, client=client, timeout=0, parameters={"t": 1}, tags=["at-once"])
    runs = eventually(lambda: ended(many.flow_runs("at-once")), "all are done", SECONDS, every=1)
    assert {run.state_name for run in runs} == {"Completed"} and len(runs) == 16
    assert max(run.created for run in runs) < min(run.end_time for run in runs)
    assert all(many.run.update_sha256(1, name, 1) for name in names)
    server = workers.server
    assert isinstance(server, OnPostgres) and server.counted("flow_run") >= 16 + 2 * 4
    assert not list(server.home.glob("*.db")) and "Traceback" not in (server.home / "server.log").read_text()


def ended(runs: list[Any]) -> list[Any] | None:
    return runs if all(run.state.is_final() for run in runs) else None
