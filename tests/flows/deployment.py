"""A deployed federation to break: a separate Prefect server, real workers, and access to every process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from photon_cli.prefect.embedded import CLIENT, hold_port
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import view_of
from tests.conftest import prepare_file, write_file
from tests.database import give_database

T = TypeVar("T")
COORDINATOR = "coordinator"
POOLS = (COORDINATOR, "near", "far")
WAIT_SECONDS = 400.0


class Server:
    """A Prefect server with all its services, that can be stopped and started again on its port and database."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._held = hold_port()
        self.port = int(self._held.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """Of everything that works with this server."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **kept,
            **CLIENT,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.home}/prefect.db",
        }

    def start(self) -> None:
        give_database(self.home)
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._process = start(
            "photon_cli.prefect.server", *place, env=self.environment(), log=self.home / "server"
        )
        eventually(self._answers, "the server answers")

    def stop(self) -> None:
        """End it at once; its port stays held, for another start."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of its process, and of its process group."""
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=2):
                return True
        except OSError:
            return False

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A synchronous client of this server, in this process, which otherwise knows another."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{self.url}/api"}), get_client(sync_client=True) as client:
            yield client


class SessionServer:
    """The server that the whole test session shares."""

    def client(self) -> Any:
        """A synchronous client of it."""
        from prefect.client.orchestration import get_client

        return get_client(sync_client=True)


class Workers:
    """One worker process for each work pool."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, pool: str) -> None:
        from photon_cli.join import WORKER

        arguments = ["worker", "start", "--pool", pool, "--type", "process", "--name", f"worker-{pool}"]
        env = {**self.server.environment(), **WORKER}
        self._processes[pool] = start("prefect", *arguments, env=env, log=self.server.home / f"worker-{pool}")

    def kill(self, pool: str) -> None:
        self._processes[pool].kill()
        self._processes.pop(pool).wait()

    def stop(self) -> None:
        for worker in self._processes.values():
            worker.terminate()
        for worker in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(40)
            worker.kill()
            worker.wait()


class Deployed:
    """A federation on that server."""

    def __init__(self, server: Server | SessionServer, federation: Federation) -> None:
        self.server, self.federation, self.run = server, federation, run_of(federation)

    def start_round(self, flow: str = "federated-round", **parameters: Any) -> Any:
        """What the schedule, or somebody in the UI, does. Returns the round's flow run."""
        return self.start_flow(flow, self.federation.run, **parameters)

    def start_flow(self, flow: str, name: str, **parameters: Any) -> Any:
        """A deployment's flow run."""
        from prefect.deployments import run_deployment

        with self.server.client() as client:
            return run_deployment(f"{flow}/{name}", client=client, timeout=0, parameters=parameters)

    def state(self, flow_run: Any) -> Any:
        with self.server.client() as client:
            return client.read_flow_run(flow_run.id).state

    def ended(self, flow_run: Any, since: Any = None) -> Any:
        """The flow run's final state, another one than `since`."""

        def look() -> Any:
            state = self.state(flow_run)
            return state if state.is_final() and (since is None or state.id != since.id) else None

        return eventually(look, f"{flow_run.name} ends")

    def cancel(self, flow_run: Any) -> None:
        """As the UI does."""
        from prefect.states import Cancelling

        with self.server.client() as client:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)

    def retry(self, flow_run: Any) -> None:
        """The request that the UI makes: not forced, so the server's rules for retries hold."""
        from prefect.states import AwaitingRetry

        with self.server.client() as client:
            done = client.set_flow_run_state(flow_run.id, AwaitingRetry(message="Retry from the UI"), force=False)
        assert done.status == "ACCEPT", done

    def executions(self, flow_run: Any) -> int:
        """How often a worker has done with the flow run: the last that it says, after both reports of a crash."""
        from prefect.events.filters import EventFilter, EventNameFilter

        names = EventFilter(event=EventNameFilter(name=["prefect.worker.executed-flow-run"]))
        with self.server.client() as client:
            answer = client.request("POST", "/events/filter", json={"filter": names.model_dump(mode="json")})
        resource = f"prefect.flow-run.{flow_run.id}"
        return sum(
            resource in [related["prefect.resource.id"] for related in event["related"]]
            for event in answer.json()["events"]
        )

    def flow_runs(self, *tags: str) -> list[Any]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

        mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run:{self.federation.run}", *tags]))
        with self.server.client() as client:
            return list(client.read_flow_runs(flow_run_filter=mine))

    def site_run(self, site: str, t: int, *states: str) -> Any:
        """The flow run that trains the site in round t, once it is in one of these states."""
        return self.found(f"{site} round {t}", *states)

    def found(self, name: str, *states: str) -> Any:
        """The newest flow run of this name, once it is in one of these states."""

        def look() -> Any:
            found = [r for r in self.flow_runs() if r.name == name and (not states or r.state_type in states)]
            return max(found, key=lambda run: run.created) if found else None

        return eventually(look, f"the flow run '{name}' is {states}")

    def table(self) -> str:
        """What the cells of the round's newest table artifact say, a line each."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

        key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"photon-{self.federation.run}-round"]))
        with self.server.client() as client:
            found = client.read_artifacts(artifact_filter=key)
        rows = json.loads(max(found, key=lambda artifact: artifact.created).data) if found else []
        return "\n".join(str(cell) for row in rows for cell in row.values())

    def rounds(self) -> list[RoundManifest]:
        return history(self.run)

    def log(self, site: str) -> Path:
        return self.folder(site) / "log" / "training.log"

    def folder(self, site: str) -> Path:
        """Where the site keeps its own."""
        return Path(view_of(self.federation, site).section.state_dir or "")

    def damage(self, site: str) -> "Damage":
        """Flip a byte of the site's first shard."""
        return Damage(next((self.folder(site) / "data" / "text" / "train").glob("shard*")))

    def trainer(self, site: str, step: int = 1, but: int = 0) -> int:
        """The process that trains the site, once it has done `step` local steps; another one than `but`."""
        state = self.folder(site) / "state"
        log, enough = self.log(site).resolve(), 4 * self.federation.local.batch_size * step

        def look() -> int | None:
            if not any(path.stat().st_size >= enough for path in state.glob(".writing-*/samples.u32")):
                return None
            return next((pid for pid in processes() if pid != but and output_of(pid) == log), None)

        return eventually(look, f"{site} trains")

    def process_of(self, flow_run: Any) -> int:
        """The process in which a worker runs the flow run."""
        mark = f"PREFECT__FLOW_RUN_ID={flow_run.id}".encode()
        return eventually(
            lambda: next((pid for pid in processes() if mark in environment_of(pid)), None),
            f"{flow_run.name} has a process",
        )

    def family(self) -> set[int]:
        """Every process that works for this federation: flow runs, trainers, what they have started."""
        marks = [f"PREFECT__FLOW_RUN_ID={run.id}".encode() for run in self.flow_runs()]
        logs = {self.log(site.name).resolve() for site in self.federation.sites}
        return {
            pid
            for pid in processes()
            if output_of(pid) in logs or any(mark in environment_of(pid) for mark in marks)
        }


class Damage:
    """A flipped byte in a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.whole = file, file.read_bytes()
        half = len(self.whole) // 2
        file.write_bytes(self.whole[:half] + bytes([self.whole[half] ^ 1]) + self.whole[half + 1 :])

    def mend(self) -> None:
        self.file.write_bytes(self.whole)


def served(home: Path) -> AbstractContextManager[Workers]:
    """A separate server with all its services, and a worker for each of POOLS."""
    return serving(Server(home), POOLS)


@contextmanager
def serving(server: Server, pools: tuple[str, ...]) -> Iterator[Workers]:
    """The server, and a worker for each pool."""
    from prefect.client.schemas.actions import WorkPoolCreate

    workers = Workers(server)
    try:
        server.start()
        with server.client() as client:
            for pool in pools:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        for pool in pools:
            workers.start(pool)
        yield workers
    finally:
        workers.stop()
        server.stop()


def deployed(
    workers: Workers,
    folder: Path,
    sites: tuple[str, ...],
    pools: dict[str, str] | None = None,
    **sections: Any,
) -> Deployed:
    """Write, prepare and deploy a federation; every site is on the pool `near` unless `pools` says otherwise."""
    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    where = dict.fromkeys(sites, "near") | (pools or {})
    deploy = {"pool": COORDINATOR, "heartbeat": 30, "zombie_after": 60, **sections.pop("deploy", {})}
    federation = prepare_file(write_file(folder, sites, where, deploy=deploy, **sections))
    with workers.server.client():
        apply(plan(federation))
    return Deployed(workers.server, federation)


def start(module: str, *arguments: str, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A separate process, in its own session, that writes to the log."""
    with log.with_suffix(".log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env=env,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def eventually(look: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS, every: float = 0.05) -> T:
    """The first answer of `look` that is not empty. It is called every `every` seconds."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):  # a process or a file that is gone by the time it is looked at
            if found := look():
                return found
        time.sleep(every)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def output_of(pid: int) -> Path | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/fd/1").resolve()
    return None


def environment_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def shared_memory_of(pid: int) -> set[tuple[str, int]]:
    """Names and inodes of the shared memory that the process has made; of others' it maps only `_locals`."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/" in line]
    return {(Path(line[5]).name, int(line[4])) for line in lines if not line[5].endswith("_locals")}


def crashed_for_good(two: Deployed, flow_run: Any, times: int) -> None:
    """The worker has reported the crash for the second and last time: a state that is set from now on is kept."""
    eventually(lambda: two.executions(flow_run) == times, f"{flow_run.name} has crashed {times} times")
    assert two.state(flow_run).is_crashed()


def aggregating(two: Deployed) -> bool:
    folder = Path(two.federation.store) / two.run.round_dir(1)
    return any(path.name != "sites" for path in folder.iterdir())


def go_on(trainers: Iterable[int]) -> None:
    """Continue the processes that are stopped, unless they are gone."""
    for pid in trainers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def recovered(name: str, since: float) -> None:
    """Print how long it took. `since` is of time.monotonic()."""
    print(f"recovery: {name}: {time.monotonic() - since:.1f} s")
