"""photon status: what the store says has happened. Needs no server, no torch."""

import json
from typing import Any

from photon_cli.tables import rounds_table
from photon_core.layout import Run
from photon_core.rounds import history, run_of, summary
from schemas.federation import Federation
from schemas.manifests import RoundManifest


def show_status(federation: Federation, as_json: bool) -> None:
    run = run_of(federation)
    rounds = history(run)
    if as_json:
        print(json.dumps(_facts(federation, run, rounds), indent=2))
        return
    from rich.console import Console

    console = Console()
    if not rounds:
        console.print(f"run {federation.run}: nothing in {run.store.url} yet. Next: photon run")
        return
    done = rounds[-1].round
    console.print(
        f"run [bold]{federation.run}[/bold]: {done} of {federation.rounds.count} rounds in {run.store.url}"
    )
    if done:
        console.print(rounds_table(rounds[1:]))


def _facts(federation: Federation, run: Run, rounds: list[RoundManifest]) -> dict[str, Any]:
    return {
        "run": federation.run,
        "store": run.store.url,
        "committed": rounds[-1].round if rounds else None,
        "count": federation.rounds.count,
        "rounds": [
            {
                "round": manifest.round,
                "model_sha256": manifest.model_sha256,
                "global_step": manifest.global_step,
                "total_tokens": manifest.total_tokens,
                "metrics": manifest.metrics,
                "seconds": manifest.seconds,
                "created": manifest.created,
                "sites": summary(manifest),
            }
            for manifest in rounds
        ],
    }
