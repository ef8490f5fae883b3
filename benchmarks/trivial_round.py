"""Whole embedded rounds of four sites that train nothing, compared with Flower's simulation of the same.

    python -m benchmarks.trivial_round [--size 125M] [--rounds 3] [--no-flower]

Each site loads the model in a child process, adds a constant, encodes and uploads the change. Then the round is
aggregated, committed and published, through the tasks of the real flow on an embedded Prefect server. Neither
evaluates. Photon's rounds are on disk, hashed and committed; Flower keeps nothing.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Neighbours, finish, heading, machine, say, table
from benchmarks.peers.flower import PeerMissing, flower_rounds
from benchmarks.updates import bytes_of, shapes_of
from schemas.view import view_of

FILE = """run: trivial
store: store
tokenizer: bytes
recipe: null
model: {model}
rounds: {{count: {rounds}, report_every: null}}
local: {{steps: 1, batch_size: 1, device: cpu}}
sites:
"""
SITE = "  - {{name: {name}, state_dir: sites/{name}, streams: [{{name: text, source: text/{name}.jsonl}}]}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="125M", help="a published size such as 125M, or 10M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-flower", action="store_true", help="skip Flower")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(rounds_of(Path(arguments.child))))
        return
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name:
        file = write(Path(name), arguments.size, arguments.rounds)
        say(f"{arguments.rounds} rounds of four sites, {arguments.size}")
        command = [sys.executable, "-m", "benchmarks.trivial_round", "--child", str(file)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        ours = json.loads(done.stdout.splitlines()[-1])
    others = neighbours.share()
    rows: list[tuple[Any, ...]] = [("photon", ours["first_round_s"], ours["round_s"])]
    figures: dict[str, Any] = {f"photon_{key}": value for key, value in ours.items()}
    if not arguments.no_flower:
        try:
            theirs = flower_rounds(4, bytes_of(shapes_of(arguments.size)) // 4, arguments.rounds)
            rows.append(("Flower's simulation", theirs["first_round_s"], theirs["round_s"]))
            figures["vs_flower_round"] = ours["round_s"] / theirs["round_s"]
        except PeerMissing as reason:
            say(f"Flower is skipped: {reason}")
    heading("A round of four sites that train nothing", at, others)
    table("Seconds", ("", "to the end of round 1, from the start", "a round after (median)"), rows)
    finish(figures, at)


def write(folder: Path, size: str, rounds: int) -> Path:
    """Write the federation file, and prepare four sites' text."""
    from benchmarks.updates import SMALL
    from photon_cli.demo import write_demo
    from photon_core.data.prepare import prepare_site
    from schemas.reading.load import load_federation

    names = write_demo(folder, rounds)
    file = folder / "federation.yaml"
    model = json.dumps(SMALL) if size == "10M" else f"{{preset: {size}}}"
    text = FILE.format(model=model, rounds=rounds) + "".join(SITE.format(name=name) for name in names)
    file.write_text(re.sub('"', "", text))
    federation = load_federation(file)
    for name in names:
        prepare_site(view_of(federation, name))
    return file


def train(job: Any) -> Any:
    """In a child process: write the model plus a constant as the site's update."""
    import shutil

    import torch

    from photon_core.training.exchange import Theta, post_process, write_update
    from photon_core.update.trained import Trained

    torch.set_num_threads(1)
    folder = job.view.state_dir / f"trivial-{job.round}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    theta = Theta(job.base_files, job.view.federation.model)
    trained = {name: value + 1e-3 for name, value in theta.tensors().items()}
    shapes = {name: tuple(value.shape) for name, value in trained.items()}
    written = write_update(post_process(theta, trained, job.view.update), shapes, folder)
    return Trained(
        **{"round": job.round, "attempt": job.attempt, "base_sha256": job.base_sha256, "codec": written.codec},
        **{"tokens": 1, "steps": 1, "metrics": {"train_loss": 0.0, **written.metrics}, "files": written.files},
        **{"folder": str(folder), "seconds": {}},
    )


def rounds_of(file: Path) -> dict[str, float]:
    """Seconds to the end of the first round, including the server's start, and of a later round."""
    start = time.perf_counter()
    from photon_cli.run import embedded
    from photon_cli.tree import alone
    from schemas.reading.load import load_federation

    federation = load_federation(file)
    ends: list[float] = []
    with embedded(alone(federation, file), Silent()) as process:
        from prefect import flow, task
        from prefect.cache_policies import NO_CACHE
        from prefect.task_runners import ThreadPoolTaskRunner

        from benchmarks.trivial_round import train  # under a name that a child can import, unlike __main__
        from photon_core.aggregation.candidate import RoundLog
        from tasks import coordinator, site

        runtime = process.of(federation.run)

        @task(task_run_name="{name} / train", cache_policy=NO_CACHE)
        def trivial(name: str, t: int) -> Any:
            job = site._job(runtime, view_of(federation, name), t)
            return runtime.launcher.run(partial(train, job), label=name, timeout=600)

        @flow(task_runner=ThreadPoolTaskRunner(max_workers=64))
        def trivial_round() -> None:
            t = coordinator.open_round(runtime, federation, None)
            sampled = coordinator.sample(federation, t)
            trained = {name: trivial.submit(name, t) for name in sampled}
            uploaded = [
                site.upload.submit(runtime, view_of(federation, name), t, future, [])
                for name, future in trained.items()
            ]
            for future in uploaded:
                future.result()
            candidate = coordinator.aggregate(runtime, federation, t, sampled, {}, {})
            coordinator.publish(runtime, federation, candidate, RoundLog(sampled))

        for _ in range(federation.rounds.count):
            trivial_round()
            ends.append(time.perf_counter())
    later = sorted(after - before for before, after in pairwise(ends))
    return {"first_round_s": ends[0] - start, "round_s": later[len(later) // 2] if later else float("nan")}


class Silent:
    """A display that shows nothing."""

    def say(self, text: str) -> None: ...

    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None: ...

    def finish(self, name: str) -> None: ...


if __name__ == "__main__":
    main()
