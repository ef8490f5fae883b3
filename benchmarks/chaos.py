"""Chaos: a run whose processes are killed with -9 at random moments, compared with the same run undisturbed.

This is `--chaos` of benchmarks/recovery.py. Server, workers and command are services that are restarted as by
systemd. A fixed seed determines which process is killed, and when.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import Neighbours, finish, heading, machine, say, table
from benchmarks.supervised import Service, Services, reap
from photon_cli.join import WORKER
from photon_cli.prefect.embedded import CLIENT, hold_port
from photon_core.run.history import history
from photon_core.run.run import Run
from photon_core.store.store import Store
from tests.conftest import write_file

RUN = "chaos"
SITES = ("a", "b")
KINDS = {
    "embedded": ("command", "server", "fork server", "trainer"),
    "deployed": ("command", "server", "worker", "fork server", "flow run", "trainer"),
}
SETTLE_SECONDS = 30.0  # longest wait for a process of the kind to be killed
START_SECONDS = 180.0  # longest start of a server
LOOK_SECONDS = 0.1
LIMIT_SECONDS = 3600.0  # limit of an undisturbed run, and of a quick one
SLOWEST = 10  # multiple of the undisturbed run's time after which the disturbed one counts as hung
QUICK_STEPS = 800


def add_arguments(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_argument_group("chaos")
    chosen.add_argument("--chaos", action="store_true", help="kill processes at random moments")
    chosen.add_argument("--only", choices=KINDS, help="run only this part")
    chosen.add_argument("--rounds", type=int, default=30)
    chosen.add_argument("--steps", type=int, default=3000, help="local steps of a round")
    chosen.add_argument("--every", type=float, default=60.0, help="mean seconds between two kills")
    chosen.add_argument("--seed", type=int, default=1, help="random seed of the kills")
    chosen.add_argument("--keep", type=Path, help="new folder for the work, which is kept")


def chaos(arguments: argparse.Namespace) -> None:
    """Run each part undisturbed, then disturbed. Print tables and the last line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit also stops the services
    at, neighbours = machine(), Neighbours()
    parts = [arguments.only] if arguments.only else list(KINDS)
    found: dict[str, tuple[Outcome, Outcome]] = {}
    with _workplace(arguments.keep) as work:
        for part in parts:
            plan = _plan(arguments, part)
            prepare(work / part / "prepared", plan)
            reference = perform(work / part / "prepared", work / part / "undisturbed", part, plan, False)
            if reference.seconds is None:
                raise RuntimeError(f"{part}: the undisturbed run was not finished within {plan.limit:.0f} s")
            if plan.every is not None:
                plan = replace(plan, limit=SLOWEST * reference.seconds)
            disturbed = perform(work / part / "prepared", work / part / "disturbed", part, plan, True)
            found[part] = reference, disturbed
    show(at, neighbours.share(), found, arguments)


def _plan(arguments: argparse.Namespace, part: str) -> "Plan":
    if arguments.quick:
        return Plan(len(KINDS[part]), QUICK_STEPS, None, arguments.seed, LIMIT_SECONDS)
    return Plan(arguments.rounds, arguments.steps, arguments.every, arguments.seed, LIMIT_SECONDS)


@contextmanager
def _workplace(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name:
        yield Path(name)


def show(
    at: Mapping[str, Any],
    others: float | None,
    found: Mapping[str, tuple["Outcome", "Outcome"]],
    arguments: argparse.Namespace,
) -> None:
    heading("Chaos: a run whose processes are killed with -9 at random moments", at, others)
    figures: dict[str, Any] = {"benchmark": "chaos", "quick": arguments.quick}
    rows: list[tuple[Any, ...]] = []
    for part, (reference, disturbed) in found.items():
        same = disturbed.hashes == reference.hashes
        goodput = steady = None
        if not arguments.quick and reference.seconds and disturbed.seconds:
            goodput = reference.seconds / disturbed.seconds
            steady = goodput_steady(reference.commits, disturbed.commits)
        kills = sum(disturbed.kills.values())
        committed = [len(outcome.hashes) - 1 for outcome in (reference, disturbed)]
        seconds = reference.seconds, disturbed.seconds
        rows.append((part, *committed, kills, *seconds, goodput, steady, str(same), len(disturbed.trained_twice)))
        figures[part] = {
            "goodput": goodput and round(goodput, 3),
            "goodput_steady": steady and round(steady, 3),
            "same_bits": same,
            "trained_twice": disturbed.trained_twice,
            "left_out": disturbed.left_out,
            "kills": dict(disturbed.kills),
            "starts": disturbed.starts,
            "undisturbed_s": reference.seconds and round(reference.seconds, 1),
            "disturbed_s": disturbed.seconds and round(disturbed.seconds, 1),
        }
    columns = (
        *("", "rounds", "disturbed", "kills", "undisturbed s", "disturbed s", "goodput", "steady"),
        *("same bits", "twice"),
    )
    table("Two sites; rounds committed, seconds to the last commit", columns, rows)
    kinds = sorted({kind for kinds in KINDS.values() for kind in kinds})
    table("Kills", ("", *kinds), [(part, *(d.kills[k] for k in kinds)) for part, (_, d) in found.items()])
    finish({**figures, "others_share": others}, at)


def goodput_steady(reference: Sequence[float], disturbed: Sequence[float]) -> float:
    """Goodput that does not depend on the machine's speed in another run: seconds of a start and of all rounds at
    the disturbed run's own median round, over its seconds.

    Args:
        reference, disturbed: seconds to each round's commit, from round 0.
    """
    rounds = [after - before for before, after in pairwise(disturbed)]
    return (reference[0] + len(rounds) * median(rounds)) / disturbed[-1]


@dataclass(frozen=True)
class Plan:
    """Size of a run, and its kills.

    Args:
        rounds, steps: rounds of the run, and local steps of a round.
        every: mean seconds between two kills; None for one kill of each kind, each in a separate round.
        seed: random seed of the kills.
        limit: seconds after which an unfinished run counts as hung.
    """

    rounds: int
    steps: int
    every: float | None
    seed: int
    limit: float


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        seconds: time from the start of the command to the last round's commit; None if that did not happen.
        commits: seconds from that start to each round's commit, from round 0.
        hashes: hashes of the models, from round 0.
        kills: number of kills by kind.
        trained_twice: site and round of each training of already committed work, such as "site a, round 3".
        left_out: excluded sites and reasons, by round.
        starts: number of starts by service.
    """

    seconds: float | None = None
    commits: list[float] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    trained_twice: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)


def prepare(folder: Path, plan: Plan) -> Path:
    """Write and prepare a federation of two sites. Returns its file."""
    file = write_file(
        folder,
        SITES,
        {site: f"chaos-{site}" for site in SITES},
        run=RUN,
        local={"steps": plan.steps, "checkpoint_steps": max(1, plan.steps // 20)},
        rounds={"count": plan.rounds, "deadline": 3600, "evaluation_deadline": 3600},
        deploy={"pool": "chaos-rounds", "heartbeat": 30, "zombie_after": 60},
    )
    photon(folder, os.environ, "prepare", str(file), "--quiet")
    return file


def perform(prepared: Path, folder: Path, part: str, plan: Plan, disturbed: bool) -> Outcome:
    """Do the run in a new folder.

    Args:
        prepared: folder of the prepared federation, which is copied.
        folder: folder of the run.
        part: kind of the run, embedded or deployed.
        plan: size of the run, and its kills.
        disturbed: flag: kill processes.
    """
    shutil.copytree(prepared, folder, symlinks=True)
    outcome = Outcome()
    trainings = Trainings(folder)
    with PARTS[part](folder) as (services, command), trainings:
        began, last = time.time(), commits(folder)
        services.start(command)
        kills = _kills(services, folder, part, plan, outcome, began) if disturbed else iter(())
        while len(commits(folder)) <= plan.rounds and time.time() - began < plan.limit:
            next(kills, None)
            reap(services.all)
            time.sleep(LOOK_SECONDS)
            if len(commits(folder)) > len(last):
                last = commits(folder)
                how = "disturbed" if disturbed else "undisturbed"
                say(f"{part}, {how}: +{time.time() - began:.1f} s, round {len(last) - 1}")
        outcome.starts = {service.name: service.starts for service in services.all}
    outcome.commits = [at - began for at in commits(folder)]
    if len(outcome.commits) > plan.rounds:
        outcome.seconds = outcome.commits[-1]
    found = history(Run(Store(str(folder / "store")), RUN))
    outcome.hashes = [manifest.model_sha256 for manifest in found]
    outcome.left_out = [f"round {m.round}: {site}: {why}" for m in found for site, why in m.left_out.items()]
    outcome.trained_twice = trainings.of_committed_work()
    return outcome


def _kills(
    services: Services, folder: Path, part: str, plan: Plan, outcome: Outcome, began: float
) -> Iterator[None]:
    """Kill a process whenever a kill is due. Yields between two checks."""
    chance = random.Random(plan.seed)
    kinds = iter(KINDS[part])
    due = 0.0 if plan.every is None else chance.expovariate(1 / plan.every)
    while True:
        if plan.every is not None:
            kind = chance.choice(KINDS[part])
            while time.time() - began < due:
                yield
        else:
            kind = next(kinds, "")
            if not kind:
                return
            while not checkpoints(folder):
                yield
        settle = time.time() + SETTLE_SECONDS
        while not (there := services.roles().get(kind)) and time.time() < settle:
            yield
        if there:
            pid, t = chance.choice(there), len(commits(folder))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                outcome.kills[kind] += 1
                say(f"{part}: +{time.time() - began:.1f} s, kill -9 {pid}, {kind}, in round {t}")
            while plan.every is None and len(commits(folder)) <= t:
                yield
        due += chance.expovariate(1 / plan.every) if plan.every is not None else 0.0
        yield


class Trainings:
    """Start times of the sites' trainings, observed from the folders that they write.

    Args:
        folder: folder of the federation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began: dict[tuple[str, str, int], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="trainings", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for path in self.folder.glob("sites/*/state/.writing-*/samples.u32"):
                with suppress(OSError):
                    key = path.parts[-4], path.parts[-2], path.stat().st_ino
                    self._began.setdefault(key, time.time())

    def of_committed_work(self) -> list[str]:
        """Trainings of committed work: a second update of a round, a result newer than the committed update, or a
        training that began between the commits of the update and of its round."""
        found = []
        for update in sorted(self.folder.glob(f"store/{RUN}/rounds/*/sites/*/*/update.json")):
            t, site, attempt = int(update.parts[-5]), update.parts[-3], int(update.parts[-2])
            committed = update.stat().st_mtime
            whole = update.parents[3] / "round.json"
            until = whole.stat().st_mtime if whole.exists() else time.time()
            result = self.folder / "sites" / site / "state" / f"{t:06d}-{attempt:04d}" / "trained.json"
            again = any(committed < at < until for (name, _, _), at in self._began.items() if name == site)
            if attempt > 1 or again or (result.exists() and result.stat().st_mtime > committed):
                found.append(f"site {site}, round {t}")
        return found


def commits(folder: Path) -> list[float]:
    """Commit times of the rounds, Unix time, from round 0."""
    return sorted(path.stat().st_mtime for path in folder.glob(f"store/{RUN}/rounds/*/round.json"))


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("sites/*/state/checkpoint/*.pt"))


@contextmanager
def embedded(folder: Path) -> Iterator[tuple[Services, Service]]:
    """Only the command, `photon run`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with Services() as services:
        yield (
            services,
            _service("run", "command", folder, env, "photon_cli", "run", _file(folder), until_done=True),
        )


@contextmanager
def deployed(folder: Path) -> Iterator[tuple[Services, Service]]:
    """`photon server`, three `photon join`, and a command that starts the run, all on this machine."""
    held = hold_port()
    port = int(held.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {**kept, **CLIENT, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"{url}/api"}
    env["PATH"] = WORKER["PATH"]
    with held, Services() as services:
        place = ["--host", "127.0.0.1", "--port", str(port)]
        services.start(_service("server", "server", folder, env, "photon_cli", "server", *place))
        _answers(url)
        photon(folder, env, "deploy", _file(folder), "--quiet")
        for name in ("--coordinator", *SITES):
            who = [name] if name == "--coordinator" else ["--site", name]
            service = _service(f"join{name}", "worker", folder, env, "photon_cli", "join", _file(folder), *who)
            services.start(service)
        asked = ["deployment", "run", f"federated-run/{RUN}", "--watch", "--watch-interval", "1"]
        yield services, _service("command", "command", folder, env, "prefect", *asked, until_done=True)


PARTS: dict[str, Callable[[Path], AbstractContextManager[tuple[Services, Service]]]] = {
    "embedded": embedded,
    "deployed": deployed,
}


def _service(
    name: str, role: str, folder: Path, env: dict[str, str], module: str, *arguments: str, until_done: bool = False
) -> Service:
    command = [sys.executable, "-m", module, *arguments]
    return Service(name, role, command, env, folder / f"{name}.log", until_done)


def _file(folder: Path) -> str:
    return str(folder / "federation.yaml")


def _answers(url: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        with suppress(OSError), urllib.request.urlopen(f"{url}/api/health", timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not answer within {START_SECONDS:.0f} s")


def photon(folder: Path, env: Mapping[str, str], *arguments: str) -> None:
    """Run the command line once. Raises RuntimeError with the end of its output if it fails."""
    command = [sys.executable, "-m", "photon_cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"photon {arguments[0]}: code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
