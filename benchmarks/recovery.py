"""Time of a deployed federation from the failure of one of its sites to the committed round.

    python -m benchmarks.recovery [--quick]

A Prefect server, a coordinator and two sites, each with its own worker, run on one machine, with a tiny model. One
site fails after a tenth of its local steps or, for the exception, before them:

* trainer: SIGKILL of the process that trains [recovery_s.trainer];
* process: SIGKILL of the process of the site's flow run, whose worker reports it [recovery_s.process];
* exception: the flow run ends as Failed (a shard is damaged when the round begins, and restored right after), and
  the API call of the UI's button Retry follows at once [recovery_s.exception].

recovery_s counts from the failure to the commit of the round, and so includes the remaining training, aggregation
and evaluation. The same is measured without a failure, from the same point; `cost` is the difference.

    python -m benchmarks.recovery --chaos [--quick] [--only embedded | deployed]

A run of two sites whose processes are killed with -9 at random moments (a fixed seed), one a minute on average,
while server, workers and command are restarted as by systemd; and the same run undisturbed. Embedded (`photon
run`) and deployed (`photon server`, `photon join`) runs are measured separately.

* goodput: seconds of the undisturbed run over those of the disturbed one; goodput_steady: the same by the
  disturbed run's own median round, which a change of the machine's speed does not move; null for a run that was
  not finished in ten times as long. `--quick` kills one process of each kind, each in a separate round, and prints
  no goodput.
* same_bits: whether the models of all rounds equal the undisturbed run's.
* trained_twice: trainings of already committed work; there must be none.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos import add_arguments, chaos
from benchmarks.common import Neighbours, finish, heading, machine, say, table
from photon_core.jobs.sharing import serve
from photon_core.training.entry import PRELOAD
from tests.flows.bad_round import failed, kill
from tests.flows.deployment import POOLS, Deployed, Workers, deployed, served

SITES = ("steady", "failing")
KINDS = ("none", "trainer", "process", "exception")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="each failure once, with fewer steps")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each kind")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.chaos:
        chaos(arguments)
        return
    repeats, steps = (1, 400) if arguments.quick else (arguments.repeats, 800)
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name, serve(PRELOAD) as shared:
        os.environ.update(shared)
        with served(Path(name) / "prefect") as workers:
            found = measure(workers, Path(name) / "fed", repeats, steps)
    show(at, neighbours.share(), found, repeats, steps)


def measure(workers: Workers, folder: Path, repeats: int, steps: int) -> dict[str, list[float]]:
    """Kind of failure -> seconds from the failure, or from the same point without one, to the round's commit."""
    schedule = [kind for _ in range(repeats) for kind in KINDS]
    federation = deployed(
        workers,
        folder,
        SITES,
        dict(zip(SITES, POOLS[1:], strict=True)),
        run="recovery",
        local={"steps": steps, "checkpoint_steps": 50},
        rounds={"count": len(schedule) + 1, "deadline": 600},
    )
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    one_round(federation, 1, "none", steps)  # warm-up
    for t, kind in enumerate(schedule, start=2):
        found[kind].append(one_round(federation, t, kind, steps))
        say(f"round {t}, {kind}: {found[kind][-1]:.1f} s")
    return found


def one_round(federation: Deployed, t: int, kind: str, steps: int) -> float:
    flow_run = federation.start_round()
    at = FAILURES[kind](federation, t, steps // 10)
    state = federation.ended(flow_run)
    if not state.is_completed():
        raise RuntimeError(f"round {t}: {state.name}: {state.message}")
    manifest = federation.rounds()[-1]
    assert manifest.round == t and not manifest.left_out, manifest.left_out
    committed = Path(federation.federation.store) / federation.run.round_dir(t) / "round.json"
    return committed.stat().st_mtime - at


def nothing(federation: Deployed, _t: int, step: int) -> float:
    federation.trainer("failing", step)
    return time.time()


def trainer(federation: Deployed, _t: int, step: int) -> float:
    return kill(federation.trainer("failing", step))


def process(federation: Deployed, t: int, step: int) -> float:
    federation.trainer("failing", step)
    return kill(federation.process_of(federation.site_run("failing", t, "RUNNING")))


def exception(federation: Deployed, t: int, _step: int) -> float:
    damaged = federation.damage("failing")
    at = failed(federation, "failing", t)
    damaged.mend()
    federation.retry(federation.site_run("failing", t))
    return at


FAILURES: dict[str, Callable[[Deployed, int, int], float]] = {
    "none": nothing,
    "trainer": trainer,
    "process": process,
    "exception": exception,
}


def show(
    at: dict[str, Any], others: float | None, found: dict[str, list[float]], repeats: int, steps: int
) -> None:
    median = {kind: statistics.median(seconds) for kind, seconds in found.items()}
    heading("Recovery of a deployed round from the failure of one of its two sites", at, others)
    rows = [
        (kind, median[kind], min(found[kind]), max(found[kind]), median[kind] - median["none"]) for kind in KINDS
    ]
    columns = ("failure", "recovery_s", "least", "most", "cost")
    table(f"{steps} steps, {repeats} rounds of each, s to the committed round", columns, rows)
    finish(
        {
            "benchmark": "recovery",
            "recovery_s": {kind: round(median[kind], 2) for kind in KINDS if kind != "none"},
            "undisturbed_s": round(median["none"], 2),
            "repeats": repeats,
            "steps": steps,
            "others_share": others,
        },
        at,
    )


if __name__ == "__main__":
    main()
