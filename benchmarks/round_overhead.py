"""Cost of the federation beyond training: one machine, one run, compared with a bare Composer loop and Flower.

    python -m benchmarks.round_overhead [--quick]

* `bench`: 10 M parameters, 4 sites, 50 steps of 4 x 256 tokens a round: the whole run against the bare loop over
  the same sites, steps and tokens [overhead_ratio].
* `demo`: the small model of `photon demo`: seconds a round beyond the bare loop [demo_seconds_beyond_training].
* Flower's simulation with trivial training, 4 clients, in its own environment [flower_first_round_s_1m, ...].

The bare loop runs in two ways: one site after the other with all threads, and in parallel with one thread each.
The federation is compared with the faster one. The bare loop's time excludes its imports and includes dataset,
model, trainer and fit. The federation's time begins when its Prefect server answers and ends with the commit of
the last round. It includes remaining imports, the initial model, validation, evaluation of every round on every
site's held-out text, hashing, fsync and commit, none of which the bare loop does.
"""

import argparse
import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bare import Spec, site_runs, spec_of
from benchmarks.common import Neighbours, cores, finish, heading, machine, python_child, say, table
from benchmarks.peers.flower import PeerMissing, flower_rounds
from schemas.view import view_of

BENCH = """\
run: bench
store: store
tokenizer: bytes
recipe: null
seed: 17
model: {{n_layers: 8, d_model: 320, n_heads: 5, vocab_size: 257, max_seq_len: 256}}
rounds: {{count: {rounds}, deadline: 1h}}
local:
  steps: 50
  batch_size: 4
  device: cpu
  optimizer: {{name: adamw, lr: 1.0e-3}}
  schedule: {{name: cosine, warmup_steps: 10, total_steps: 1000}}
server: {{optimizer: nesterov, lr: 0.7, momentum: 0.6}}
data: {{evaluation_sequences: 16}}
sites:
"""
SITE = "  - {{name: {name}, state_dir: sites/{name}, streams: [{{name: text, source: text/{name}.jsonl}}]}}\n"
PHASES = ("load", "dataset", "trainer", "save", "encode")  # phases of a site's training, besides fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under 2 minutes: fewer steps and rounds")
    parser.add_argument("--no-flower", action="store_true", help="leave the peer out")
    arguments = parser.parse_args()
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name:
        work = Path(name)
        quick = arguments.quick
        bench = measure(work / "bench", BENCH, rounds=1 if quick else 2, steps=5 if quick else 50, quick=quick)
        demo = measure(work / "demo", None, rounds=2 if quick else 6, steps=10 if quick else None, quick=quick)
    others = neighbours.share()  # before Flower, whose daemons are not children of this process
    flower = {} if arguments.no_flower else flower_figures(quick=quick)
    show(at, others, bench, demo, flower, quick=quick)


def measure(folder: Path, text: str | None, *, rounds: int, steps: int | None, quick: bool) -> dict[str, Any]:
    """Prepare four sites of text that comes with Python, then run the bare loops and the federation.

    Args:
        folder: folder for all files.
        text: head of the federation file; None for the demo's file.
        rounds, steps: rounds and local steps of the federation; None keeps the file's steps.
        quick: flag: skip the slower way of the bare loop.
    """
    from photon_cli.demo import write_demo
    from photon_core.data.prepare import prepare_site
    from schemas.reading.load import load_federation

    names = write_demo(folder, rounds)
    file = folder / "federation.yaml"
    if text is not None:
        sites = "".join(SITE.format(name=name) for name in names)
        file.write_text(text.format(rounds=rounds) + sites)
    if steps is not None:
        file.write_text(re.sub(r"(?m)^  steps: \d+", f"  steps: {steps}", file.read_text()))
    federation = load_federation(file)
    for name in names:
        prepare_site(view_of(federation, name))
    total = federation.local.steps * rounds
    bare = {}
    ways = {"side by side": cores(), "one after the other": 1}
    for way, side_by_side in list(ways.items())[: 1 if quick else 2]:
        say(f"{federation.run}: bare Composer loop, {way}")
        spec: Spec = spec_of(federation, site_runs(federation), total, side_by_side=side_by_side)
        bare[way] = spec.run(folder, way.replace(" ", "-"))
    say(f"{federation.run}: federation")
    result = folder / "federated.json"
    python_child("benchmarks.timed", str(file), str(result), log=folder / "federated.log")
    timed = json.loads(result.read_text())
    bare_s = min(way["loop_s"] for way in bare.values())
    figures = {"federation": federation, "bare": bare, "bare_s": bare_s, "bare_round_s": bare_s / rounds}
    return {**figures, **analyse(timed, folder)}


def analyse(timed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds by phase, from the run's events, its manifests and the sites' clocks."""
    began: dict[tuple[int, str, str], float] = {}
    ended: dict[tuple[int, str, str], float] = {}
    lengths: dict[str, list[float]] = {}
    for event in timed["events"]:
        key = event["t"], event["step"], event["site"]
        if event["state"] == "started":
            began[key] = event["at"]
        else:
            ended[key] = event["at"]
            lengths.setdefault(f"{event['t']}/{event['step']}", []).append(event["at"] - began[key])
    inside: dict[int, dict[str, float]] = {}
    for saved in (folder / "sites").glob("*/state/*/trained.json"):
        trained = json.loads(saved.read_text())["trained"]
        phases = inside.setdefault(trained["round"], {})
        for phase, seconds in trained["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    opening = 0, "open", ""
    commits = [ended[key] for key in ended if key[1] == "publish"]
    starts = [ended[opening], *commits[:-1]]
    return {
        "total_s": commits[-1] - timed["server_ready"],
        "server_s": timed["server_ready"] - timed["started"],
        "before_flow_s": began[opening] - timed["server_ready"],
        "open_s": ended[opening] - began[opening],
        "round_s": [end - start for start, end in zip(starts, commits, strict=True)],
        "end_s": timed["ended"] - commits[-1],
        "lengths": lengths,
        "inside": inside,
        "rounds": timed["rounds"],
    }


def breakdown(measured: dict[str, Any], t: int) -> list[tuple[str, float]]:
    """Wall-clock of round t by phase, beside the bare loop's share of a round.

    Parallel work of sites is divided by the slots that they share. A validation's time is recorded only together
    with its wait for a slot: the shortest one counts for all.
    """
    sites, slots = len(measured["federation"].sites), min(cores(), len(measured["federation"].sites))
    inside, lengths = measured["inside"][t], measured["lengths"]
    fit = inside["fit"] / slots
    rows = [
        ("bare loop", measured["bare_round_s"]),
        ("fit, beyond the bare loop", fit - measured["bare_round_s"]),
        ("validate shards (imports preloaded)", min(lengths[f"{t}/validate"]) * sites / slots),
    ]
    rows += [(f"site: {phase}", inside[phase] / slots) for phase in PHASES]
    rows += [
        ("upload", sum(lengths[f"{t}/upload"]) / slots),
        ("aggregate", sum(lengths[f"{t}/aggregate"])),
        ("evaluate on every site", measured["rounds"][t]["seconds"]["evaluate"]),
        ("publish: commit, artifact", sum(lengths[f"{t}/publish"])),
    ]
    whole = measured["round_s"][t - 1]
    rest = whole - sum(seconds for _, seconds in rows)
    return [*rows, ("Prefect, start of processes, waiting", rest), ("whole round", whole)]


def flower_figures(*, quick: bool) -> dict[str, dict[str, Any]]:
    """Flower at 1 M and 10 M parameters. If it cannot run, a line with the reason is printed."""
    figures = {}
    for name, parameters in (("1m", 1_000_000), ("10m", 10_000_000))[: 1 if quick else 2]:
        try:
            figures[name] = flower_rounds(4, parameters, 3 if quick else 11)
        except PeerMissing as reason:
            say(f"Flower is skipped: {reason}")
            break
    return figures


def show(
    at: dict[str, Any],
    others: float | None,
    bench: dict[str, Any],
    demo: dict[str, Any],
    flower: dict[str, dict[str, Any]],
    *,
    quick: bool,
) -> None:
    """Print tables, then the last line."""
    heading("Cost of a round beyond training" + (" (quick: too short to be quoted)" if quick else ""), at, others)
    runs = {"10 M parameters": bench, "the demo's model": demo}
    rows: list[tuple[Any, ...]] = []
    for name, run in runs.items():
        count = len(run["round_s"])
        for way, bare in run["bare"].items():
            rows.append((f"{name}: bare loop, {way}", bare["loop_s"], bare["loop_s"] / count, bare["imports_s"]))
        rows.append((f"{name}: federation", run["total_s"], statistics.median(run["round_s"]), run["server_s"]))
    for peer in flower.values():
        label = f"Flower, {peer['parameters'] // 10**6} M, trivial training"
        rows.append((label, None, peer["round_s"], peer["first_round_s"]))
    table(
        "Seconds",
        ("", "all rounds", "a round", "start separately (Flower: to the end of round 1)"),
        rows,
    )
    parts = {name: breakdown(run, len(run["round_s"])) for name, run in runs.items()}
    labels = [label for label, _ in parts["10 M parameters"]]
    table(
        "Where the last round's time went",
        ("", *runs),
        [(label, *(dict(part)[label] for part in parts.values())) for label in labels],
    )
    table(
        "Before the first round, after the last",
        ("", *runs),
        [
            ("start of the Prefect server, imports in parallel", *(run["server_s"] for run in runs.values())),
            ("remaining imports, until the flow runs", *(run["before_flow_s"] for run in runs.values())),
            ("open the run, initial model", *(run["open_s"] for run in runs.values())),
            ("end: flow, children, server", *(run["end_s"] for run in runs.values())),
        ],
    )
    figures: dict[str, Any] = {
        "overhead_ratio": bench["total_s"] / bench["bare_s"],
        "overhead_ratio_round": statistics.median(bench["round_s"]) / bench["bare_round_s"],
        "demo_seconds_beyond_training": statistics.median(demo["round_s"][1:]) - demo["bare_round_s"],
        "demo_seconds_beyond_training_first_round": demo["round_s"][0] - demo["bare_round_s"],
    }
    for name, peer in flower.items():
        figures |= {
            f"flower_first_round_s_{name}": peer["first_round_s"],
            f"flower_round_s_{name}": peer["round_s"],
        }
    figures = {name: round(value, 3) for name, value in figures.items()}
    finish({**figures, "others_share": others, "quick": quick, "breakdown": parts}, at)


if __name__ == "__main__":
    main()
