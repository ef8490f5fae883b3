"""photon plan: predicted memory, time and bytes, compared with the committed rounds."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from photon_cli.pages import check_page, write_page
from photon_cli.prefect.credentials import take_credentials
from photon_cli.reach import reachable
from photon_cli.tables import plain_console, wide_console
from photon_core.errors import CorruptFile, FederationError, PhotonError
from photon_core.formatting import amount, duration
from photon_core.hardware.exchange import TOPOLOGIES
from photon_core.plan.measured import Measured, measure
from photon_core.plan.picture import draw
from photon_core.plan.predict import Prediction, SitePlan, compared, predict
from photon_core.plan.sweep import best, sweep
from photon_core.run.birth import check_recipe
from photon_core.run.history import history
from photon_core.run.members import check_members
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.presets import why
from schemas.reading.yaml_lines import read_yaml

BAR = 30  # characters
ENDINGS = (".svg", ".html")
PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Plan of {run}</title>
<style>body{{font-family:system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem}}
svg{{max-width:100%;height:auto}} pre{{overflow-x:auto}}</style></head>
<body>{svg}{text}</body></html>
"""


def show_plan(federation: Federation, file: Path, as_json: bool, to: Path | None) -> None:
    """Print the plan of a federation file. With `to`, also write it as a page or a picture.

    Raises:
        FederationError: the run began with another recipe, the name of `to` ends in neither .svg nor .html, `to`
            may not be written, there is no time to draw, or a site cannot train with its hardware.
    """
    if to is not None and to.suffix not in ENDINGS:
        raise FederationError(f"--to {to}: write a file name that ends in .svg or .html")
    if to is not None:
        check_page(to, [federation])
    check_members(federation)
    because = why(read_yaml(file.expanduser().read_text("utf-8-sig"), str(file))[0])
    rounds = committed(federation)
    measured = measure(federation, rounds)
    now = predict(federation, measured)
    predictions = sweep(federation, measured)
    if as_json:
        print(json.dumps({"recipe_because": because} | _facts(federation, now, best(predictions)), indent=2))
    else:
        console = wide_console()
        console.print(f"recipe {federation.recipe or 'none'}: {because}", highlight=False, markup=False)
        _print(console, federation, now, predictions, rounds, measured)
    if to is not None:
        if now.round_seconds is None:
            raise FederationError(f"--to {to}: no predicted time to draw; {_remedy(now)}")
        _write(federation, now, predictions, rounds, measured, to)


def committed(federation: Federation) -> list[RoundManifest]:
    """Committed rounds. None, with a message, if the store is unreachable: a plan comes before the store."""
    try:
        take_credentials(federation)
        run = reachable(federation)
        check_recipe(run.run_manifest(), federation)
        return history(run)
    except (FederationError, CorruptFile):
        raise
    except PhotonError as error:
        print(f"photon: planned without the rounds so far: {error}", file=sys.stderr)
        return []


def _print(
    console: Console,
    federation: Federation,
    now: Prediction,
    predictions: list[Prediction],
    rounds: list[RoundManifest],
    measured: Measured | None,
) -> None:
    source = f"calibrated on {now.calibrated} rounds" if now.calibrated else "from what the sites declare"
    head = (
        f": {now.parameters:,} parameters, {now.sampled} of {len(now.sites)} "
        f"sites a round, {now.steps} local steps"
        + (f", {federation.rounds.count} rounds" if federation.rounds.count else "")
        + (f", aggregated by {now.regions} regions" if now.regions else "")
        + f"; {source}\n{_how(federation)}\n"
    )
    console.print(Text.assemble("run ", (federation.run, "bold"), head))
    console.print(_sites(now))
    for site in now.sites:
        if site.infra:
            console.print(Text.assemble((site.name, "bold"), f" trains with {site.infra}"))
        if site.fits is False and site.micro_batch:
            room = f" has no memory for {site.micro_batch} sequences at once; write micro_batch: auto"
            console.print(Text.assemble((site.name, "bold"), room, style="red"))
    console.print(_totals(now))
    advised = best(predictions)
    if now.round_seconds is None:
        console.print(f"\nNo times: {_remedy(now)}", style="yellow")
    else:
        console.print(_curve(predictions, now, advised))
    if measured is not None:
        console.print(_against(federation, rounds))


def _how(federation: Federation) -> str:
    """Both optimizers with their main settings, including defaults."""
    local, server = federation.local.optimizer, federation.server
    matrices = f", matrix_lr {local.matrix_lr:g}" if local.name == "muon" else ""
    momentum = f", momentum {server.momentum:g}" if server.momentum else ""
    return (
        f"{local.name} at the sites (lr {local.lr:g}{matrices}, moments "
        f"{federation.local.optimizer_state}), {server.optimizer} at the server (lr {server.lr:g}{momentum})"
    )


def _sites(now: Prediction) -> Table:
    names = ("site", "memory", "micro-batch", "step", "train", "download", "upload", "total", "waits")
    table = Table(*names, header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    slowest = max((site.seconds or 0.0 for site in now.sites), default=0.0)
    for site in now.sites:
        waits = None if site.seconds is None else slowest - site.seconds
        style = "red" if site.fits is False else "bold" if waits == 0 and len(now.sites) > 1 else None
        cells = (site.step, site.train, site.download, site.upload, site.seconds, waits)
        table.add_row(site.name, _memory(site), _micro_batch(site), *map(duration, cells), style=style)
    return table


def _memory(site: SitePlan) -> str:
    return amount(site.memory.total) + ("" if site.fits is not False else ", too much")


def _micro_batch(site: SitePlan) -> str:
    return f"{site.micro_batch or 'none fits'}" + (f" (FSDP over {site.shards})" if site.shards > 1 else "")


def _totals(now: Prediction) -> Table:
    table = Table("exchange", "a round", "whole run", "bytes", header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.title, table.title_justify, table.title_style = "\nTime and bytes, all sites", "left", "bold"
    table.add_row(
        "through the store", *map(duration, (now.round_seconds, now.run_seconds)), amount(int(now.run_bytes))
    )
    for parallel in (False, True):
        for topology in TOPOLOGIES:
            seconds = now.topology_seconds(topology, parallel)
            each = None if seconds is None else seconds / now.rounds / (now.steps if parallel else 1)
            name = f"data-parallel, {topology} (each step)" if parallel else topology
            table.add_row(
                name, duration(each), duration(seconds), amount(int(now.topology_bytes(topology, parallel)))
            )
    return table


def _curve(predictions: list[Prediction], now: Prediction, advised: Prediction | None) -> Table:
    """A bar per number of local steps: predicted time of the run."""
    table = Table("local steps", "rounds", "whole run", "", header_style="bold", box=None, pad_edge=False)
    table.title, table.title_justify, table.title_style = "\nTime against local steps a round", "left", "bold"
    for column in table.columns[:3]:
        column.justify = "right"
    longest = max(p.run_seconds or 0.0 for p in predictions)
    for p in predictions:
        bar = "█" * max(1, round(BAR * (p.run_seconds or 0.0) / longest))
        notes = (" the file's" if p.steps == now.steps else "") + (" ← best" if p is advised else "")
        table.add_row(str(p.steps), f"{p.rounds:,.0f}", duration(p.run_seconds), bar + notes)
    return table


def _against(federation: Federation, rounds: list[RoundManifest]) -> Table:
    table = Table("round", "predicted", "measured", "off by", header_style="bold", box=None, pad_edge=False)
    table.title, table.title_justify = "\nEach round, predicted from those before it", "left"
    table.title_style = "bold"
    for column in table.columns:
        column.justify = "right"
    for t, predicted, seconds in compared(federation, rounds):
        off = f"{predicted / seconds - 1:+.0%}" if seconds and predicted is not None else "-"
        table.add_row(str(t), duration(predicted), duration(seconds), off)
    return table


def _remedy(now: Prediction) -> str:
    unknown = ", ".join(site.name for site in now.sites if site.step is None)
    return f"write hardware: {{tflops: ...}} for {unknown}, or run a round to measure it"


def _write(
    federation: Federation,
    now: Prediction,
    predictions: list[Prediction],
    rounds: list[RoundManifest],
    measured: Measured | None,
    to: Path,
) -> None:
    advised = best(predictions)
    with TemporaryDirectory(prefix="photon-") as folder:
        picture = Path(folder, "plan.svg")
        draw(predictions, now, advised, picture)
        drawing = picture.read_text("utf-8")
    if to.suffix == ".svg":
        write_page(to, drawing)
        return
    with Path("/dev/null").open("w") as nowhere:
        console = plain_console(record=True, width=110, file=nowhere)
        _print(console, federation, now, predictions, rounds, measured)
        text = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    write_page(to, PAGE.format(run=federation.run, svg=drawing[drawing.index("<svg") :], text=text))


def _facts(federation: Federation, now: Prediction, advised: Prediction | None) -> dict[str, Any]:
    return {
        "recipe": federation.recipe,
        "optimizer": federation.local.optimizer.name,
        "server_optimizer": federation.server.optimizer,
        "parameters": now.parameters,
        "calibrated_on_rounds": now.calibrated,
        "regions": now.regions,
        "aggregate_seconds": now.aggregate,
        "round_seconds": now.round_seconds,
        "run_seconds": now.run_seconds,
        "run_bytes": now.run_bytes,
        "data_parallel_seconds": now.data_parallel_seconds,
        "best_local_steps": None if advised is None else advised.steps,
        "sites": [
            {
                "site": site.name,
                "memory_bytes": site.memory.total,
                "fits": site.fits,
                "micro_batch": site.micro_batch,
                "infra": site.infra,
                "step_seconds": site.step,
                "train_seconds": site.train,
                "download_seconds": site.download,
                "upload_seconds": site.upload,
                "seconds": site.seconds,
            }
            for site in now.sites
        ],
        "exchanges": {
            topology: {
                "run_seconds": now.topology_seconds(topology),
                "run_bytes": now.topology_bytes(topology),
                "data_parallel_seconds": now.topology_seconds(topology, data_parallel=True),
                "data_parallel_bytes": now.topology_bytes(topology, data_parallel=True),
            }
            for topology in TOPOLOGIES
        },
    }
