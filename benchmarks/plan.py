"""photon plan compared with the measured demo: every round predicted from the rounds before it.

    python -m benchmarks.plan [--quick] [--record FILE]

Runs photon demo in a temporary folder, then predicts round k + 1 from the manifests of rounds 1 to k [worst_error:
largest |predicted / measured - 1| from the third round]. --record writes the manifests' times as JSON:
tests/photon_core/plan/demo_rounds.json is such a file.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.common import Neighbours, finish, heading, machine, python_child, say, table
from photon_core.plan.predict import compared
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.reading.load import load_federation

FIRST = 3  # first predicted round: the plan calibrates on two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds: too few to mean anything")
    parser.add_argument("--record", type=Path, help="file for the rounds' times")
    arguments = parser.parse_args()
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory() as folder:
        say("running the demo")
        rounds = "3" if arguments.quick else "6"
        demo = Path(folder) / "demo"
        python_child("photon_cli", "demo", "--to", str(demo), "--rounds", rounds, log=Path(folder) / "log")
        federation = load_federation(demo / "federation.yaml")
        manifests = history(run_of(federation))
    others = neighbours.share()
    heading("The plan against the demo" + (" (quick)" if arguments.quick else ""), at, others)
    found = compared(federation, manifests)
    rows = [(t, p, m, p / m - 1 if p is not None else None) for t, p, m in found]
    table("Seconds of a round", ("round", "predicted", "measured", "error"), rows)
    errors = [abs(error) for t, _, _, error in rows if error is not None and t >= FIRST]
    if arguments.record:
        record(federation, manifests, arguments.record)
    worst = round(max(errors), 4) if errors else None
    finish({"worst_error": worst, "others_share": others, "quick": arguments.quick}, at)


def record(federation: Federation, manifests: list[RoundManifest], path: Path) -> None:
    """Write the federation and its manifests without files, hashes and local paths, which no plan reads."""
    sites = [site.model_copy(update={"state_dir": None}) for site in federation.sites]
    kept = federation.model_copy(update={"store": "store", "sites": sites}).model_dump(mode="json")
    for site in kept["sites"]:
        for stream in site["streams"]:
            stream["source"] = Path(stream["source"]).name
    rounds = [
        m.model_copy(update={"model": [], "optimizer": [], "evaluations": {}}).model_dump(mode="json")
        for m in manifests
    ]
    path.write_text(json.dumps({"federation": kept, "rounds": rounds}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
