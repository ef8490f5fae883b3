"""Cost of a deployed round beyond training: 1, 4, 16 and 64 trivial sites on process pools of one machine.

    python -m benchmarks.deployed_overhead [--quick]

A Prefect server, one worker for the rounds (`photon join --coordinator`) and one for all sites (`photon join
--site`, whose work pool they share) run on this machine, on SQLite and a local disk. Every site trains a tiny
model for one step and evaluates on 4 sequences. A federation's first round opens the run and warms all caches. The
rounds after it are measured, from the request for a round's flow run to the commit.

* seconds_per_round: the round's time minus the sites' training (by each site's clock, divided by the shared
  cores).
* seconds_per_site: seconds_per_round divided by the number of sites.
* Processor seconds of the sites' worker and its flow runs, which other work on the machine does not change.
* Phases of each site's two flow runs (its part, and its evaluation), from the times of their states and tasks,
  averaged over sites, and of the round, from its tasks. Sites wait for each other's processor time, so a site's
  phases grow with the number of sites even if the sum of work does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import Neighbours, cores, finish, heading, machine, say, table

HEAD = """\
run: sites-{count}
store: store
tokenizer: bytes
recipe: null
model: {{n_layers: 1, d_model: 32, n_heads: 2, vocab_size: 257, max_seq_len: 64}}
rounds: {{count: 100, deadline: 1h, evaluation_deadline: 1h}}
local: {{steps: 1, batch_size: 4, device: cpu, optimizer: {{lr: 1.0e-3}}, schedule: {{warmup_steps: 1}}}}
data: {{evaluation_sequences: 4}}
deploy: {{pool: bench-rounds}}
sites:
"""
SITE = (
    "  - {{name: s{n}, pool: bench-sites, state_dir: sites/s{n}, streams: [{{name: t, source: ../text.jsonl}}]}}\n"
)
TEXTS = 30
ROUND_SECONDS = 1800.0
MANY = 16  # number of sites above which one measured round is enough
RECORDED_SECONDS = 120.0  # longest wait until the server has recorded a finished task
LAST = {"round": "/ upload", "evaluate": "/ evaluate"}
SITE_PHASES = ("created", "picked up", "process, imports", "validate", "train", "upload", "noticed")
EVALUATION_PHASES = ("created", "picked up", "process, imports", "evaluate", "noticed")
ROUND_PHASES = ("picked up", "process, imports", "open, sample", "sites", "aggregate", "evaluate", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="1 and 4 sites, one measured round")
    parser.add_argument("--sites", type=int, nargs="+", help="numbers of sites; default: 1, 4, 16 and 64")
    arguments = parser.parse_args()
    counts = arguments.sites or ([1, 4] if arguments.quick else [1, 4, 16, 64])
    rounds = {count: 1 if arguments.quick or count > MANY else 2 for count in counts}
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name:
        work = Path(name)
        files = {count: write(work, count) for count in counts}
        from photon_cli.prefect.embedded import EmbeddedServer

        with EmbeddedServer(work / "prefect", services=True) as server:
            for count, file in files.items():
                say(f"{count} sites: prepare")
                photon(work, "prepare", str(file), "--quiet")
            server.wait()
            for file in files.values():
                photon(work, "deploy", str(file), "--quiet")
            measured = {}
            file = files[counts[0]]
            with worker(work, file, "--coordinator"), worker(work, file, "--site", "s0") as sites:
                for count, file in files.items():
                    measured[count] = [one_round(file, sites) for _ in range(rounds[count] + 1)][1:]
                    say(f"{count} sites: {[round(m['seconds'], 1) for m in measured[count]]} s a round")
    show(at, neighbours.share(), measured, quick=arguments.quick)


def write(work: Path, count: int) -> Path:
    """Write a federation with this number of sites, on the same text. Returns its file."""
    text = work / "text.jsonl"
    if not text.exists():
        texts = sorted(import_module("pydoc_data.topics").topics.values())[:TEXTS]
        text.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    folder = work / f"sites-{count}"
    folder.mkdir()
    file = folder / "federation.yaml"
    file.write_text(HEAD.format(count=count) + "".join(SITE.format(n=n) for n in range(count)))
    return file


def photon(work: Path, *arguments: str) -> None:
    with (work / "photon.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "photon_cli", *arguments], stdout=log, stderr=log, check=True, env=os.environ
        )


@contextmanager
def worker(work: Path, file: Path, *arguments: str) -> Iterator[int]:
    """Run `photon join` until the end of the block. Yields its process id."""
    log = work / f"worker{arguments[0]}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "photon_cli", "join", str(file), *arguments],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        while "started" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"photon join {' '.join(arguments)} ended: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def one_round(file: Path, sites: int) -> dict[str, Any]:
    """Do one more round, and read the seconds of its phases from the server and the store.

    Args:
        file: federation file.
        sites: process id of the sites' worker.
    """
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment

    from photon_core.run.history import history
    from photon_core.run.run import run_of
    from schemas.reading.load import load_federation

    federation = load_federation(file)
    asked, worked = time.time(), processor_seconds(sites)
    with get_client(sync_client=True) as client:
        flow_run = run_deployment(
            f"federated-round/{federation.run}", client=client, timeout=ROUND_SECONDS, poll_interval=1
        )
        if not flow_run.state.is_completed():
            raise RuntimeError(f"{flow_run.name}: {flow_run.state}")
        manifest = history(run_of(federation))[-1]
        worked = processor_seconds(sites) - worked
        return {"manifest": manifest, "worked": worked, **read_phases(client, flow_run, manifest, asked)}


def processor_seconds(pid: int) -> float:
    """Processor seconds of a process and of its children that have ended (Linux)."""
    stat = Path(f"/proc/{pid}/stat")
    times = stat.read_text().rpartition(")")[2].split()[11:15] if stat.exists() else []
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def read_phases(client: Any, flow_run: Any, manifest: Any, asked: float) -> dict[str, Any]:
    """Seconds of the round and, averaged over sites, of its sites' two flow runs, by phase."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    own = tasks_of(client, flow_run.id, "publish")
    by_name = {task.name: task for task in own}
    begun, published = states(client, flow_run), by_name["publish"]
    whole = {
        "picked up": begun["Pending"] - asked,
        "process, imports": begun["Running"] - begun["Pending"],
        "open, sample": min(task.start_time.timestamp() for task in own if "/" in task.name) - begun["Running"],
        "aggregate": seconds_of(by_name["aggregate"]),
        "publish": seconds_of(published),
    }
    for phase, ending in (("sites", "round"), ("evaluate", "evaluate")):
        watched = [task for task in own if task.name.endswith(f"/ {ending}")]
        first = min(task.start_time.timestamp() for task in watched)
        whole[phase] = max(task.end_time.timestamp() for task in watched) - first
    children = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run:{manifest.run}", f"round:{manifest.round}"]))
    parts: dict[str, list[dict[str, float]]] = {"round": [], "evaluate": []}
    for child in client.read_flow_runs(flow_run_filter=children, limit=200):
        if child.id == flow_run.id:
            continue
        site = next(tag.removeprefix("site:") for tag in child.tags if tag.startswith("site:"))
        kind = "evaluate" if "evaluates" in child.name else "round"
        parts[kind].append(site_phases(client, child, by_name[f"{site} / {kind}"], LAST[kind]))
    return {
        "seconds": published.end_time.timestamp() - asked,
        "whole": whole,
        **{kind: means(found) for kind, found in parts.items()},
    }


def site_phases(client: Any, child: Any, watcher: Any, last: str) -> dict[str, float]:
    """Seconds of one flow run of a site, by phase. `watcher`: the round's task that waited for it."""
    begun = states(client, child)
    tasks = {task.name.rpartition("/ ")[2]: task for task in tasks_of(client, child.id, last)}
    done = max(task.end_time.timestamp() for task in tasks.values())
    return {
        "created": child.created.timestamp() - watcher.start_time.timestamp(),
        "picked up": begun["Pending"] - child.created.timestamp(),
        "process, imports": begun["Running"] - begun["Pending"],
        **{name: seconds_of(task) for name, task in tasks.items()},
        "noticed": watcher.end_time.timestamp() - done,
    }


def states(client: Any, flow_run: Any) -> dict[str, float]:
    """State -> Unix time when the flow run first had it."""
    found: dict[str, float] = {}
    for state in client.read_flow_run_states(flow_run.id):
        found.setdefault(state.name, state.timestamp.timestamp())
    return found


def tasks_of(client: Any, flow_run_id: Any, last: str) -> list[Any]:
    """The flow run's tasks, once the server has recorded the end of all. `last`: end of the last task's name."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    limit = time.monotonic() + RECORDED_SECONDS
    while time.monotonic() < limit:
        found: list[Any] = []
        while page := client.read_task_runs(flow_run_filter=mine, limit=200, offset=len(found)):
            found += page
        if any(task.name.endswith(last) for task in found) and all(task.end_time for task in found):
            return found
        time.sleep(0.5)
    raise RuntimeError(f"the server has not recorded the tasks of flow run {flow_run_id}")


def seconds_of(task: Any) -> float:
    return float((task.end_time - task.start_time).total_seconds())


def means(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]} if found else {}


def beyond_training(measured: dict[str, Any]) -> float:
    """Seconds of a round beyond the sites' training, which runs in parallel on this machine's cores."""
    updates = measured["manifest"].updates.values()
    training = sum(update.metrics["seconds"] for update in updates) / min(cores(), len(updates))
    return float(measured["seconds"] - training)


def show(
    at: dict[str, Any], others: float | None, measured: dict[int, list[dict[str, Any]]], *, quick: bool
) -> None:
    """Print tables, then the last line."""
    title = "Cost of a deployed round beyond training"
    heading(title + (" (quick: too short to be quoted)" if quick else ""), at, others)
    a_round = {count: statistics.median(map(beyond_training, rounds)) for count, rounds in measured.items()}
    a_site = {count: seconds / count for count, seconds in a_round.items()}
    work = {
        count: statistics.median(each["worked"] for each in rounds) / count for count, rounds in measured.items()
    }
    table(
        "Seconds beyond training",
        ("sites", "a round", "a site", "processor seconds a site, of the worker and its flow runs"),
        [(str(count), seconds, a_site[count], work[count]) for count, seconds in a_round.items()],
    )
    last = {count: rounds[-1] for count, rounds in measured.items()}
    columns = ("", *(f"{count} sites" for count in measured))
    for name, key, phases in (
        ("The last round", "whole", ROUND_PHASES),
        ("A site's part, mean over sites", "round", SITE_PHASES),
        ("A site's evaluation, mean over sites", "evaluate", EVALUATION_PHASES),
    ):
        rows = [(phase, *(each[key].get(phase) for each in last.values())) for phase in phases]
        table(f"{name}: seconds by phase", columns, rows)
    figures = {
        "seconds_per_round": {str(count): round(seconds, 2) for count, seconds in a_round.items()},
        "seconds_per_site": {str(count): round(seconds, 2) for count, seconds in a_site.items()},
        "processor_seconds_per_site": {str(count): round(seconds, 2) for count, seconds in work.items()},
        "phases": {
            str(count): {
                key: {n: round(v, 3) for n, v in each[key].items()} for key in ("whole", "round", "evaluate")
            }
            for count, each in last.items()
        },
    }
    finish({**figures, "others_share": others, "quick": quick}, at)


if __name__ == "__main__":
    main()
