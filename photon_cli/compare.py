"""photon compare: runs side by side, in the terminal or as a page. Needs no server and no torch."""

from collections.abc import Sequence
from pathlib import Path

from photon_cli.pages import check_beside, check_page, write_page
from photon_cli.progress import display
from photon_cli.reach import reachable
from photon_core.errors import FederationError
from photon_core.evidence.record import Record, read_record, series
from photon_core.report.compare import differences, names, render, results
from photon_core.run.run import Run
from photon_core.store.store import Store
from schemas.reading.load import load_federation

BLOCKS = " ▁▂▃▄▅▆▇█"
BINS = 24  # points of a curve in the terminal


def compare(runs: Sequence[str], to: Path | None, quiet: bool) -> None:
    """Print the table, or write the page.

    Args:
        runs: federation files, or <store>/<run> paths or URLs.
        to: file of the page, which may replace an older page; the terminal if None.
        quiet: flag: print no progress.

    Raises:
        FederationError: there are fewer than two runs, a run does not exist, or the page may not be written.
    """
    if len(runs) < 2:
        raise FederationError("compare needs at least two runs. Write: photon compare RUN RUN")
    if to is not None:
        check_page(to, [load_federation(Path(name)) for name in runs if _is_file(name)])
        check_beside(to, [name for name in runs if not _is_file(name)])
    with display(quiet) as show:
        records = []
        for i, name in enumerate(runs, 1):
            show.activity("compare", f"reading {name}", i, len(runs))
            records.append(read(name))
        if to is not None:
            show.activity("compare", "drawing")
            write_page(to, render(records))
            show.say(f"{to}: {len(records)} runs; open it in a browser")
        show.finish("compare")
    if to is None:
        _print(records)


def read(name: str) -> Record:
    """The record of a federation file's run, or of <store>/<run>."""
    if _is_file(name):
        federation = load_federation(Path(name))
        record = read_record(reachable(federation), federation.rounds.count)
    else:
        store, _, run = name.rstrip("/").rpartition("/")
        if not store:
            raise FederationError(f"'{name}' is not a run; write a federation file, or <store>/<run>")
        record = read_record(Run(Store(store), run))
    if record.run_manifest is None:
        raise FederationError(f"{record.url}: no run exists here; write a federation file, or <store>/<run>")
    return record


def _is_file(name: str) -> bool:
    """Whether the name of a run is its federation file."""
    return name.endswith((".yaml", ".yml")) or Path(name).is_file()


def _print(records: Sequence[Record]) -> None:
    from rich.table import Table

    from photon_cli.tables import wide_console

    shown = names(records)
    table = Table("", *shown, box=None, pad_edge=False, header_style="bold")
    for key, values in results(records):
        table.add_row(key, *values)
    table.add_row("perplexity by round", *(_spark(record, records) for record in records), end_section=True)
    for key, values in differences(records):
        table.add_row(key, *values)
    wide_console().print(table)


def _spark(record: Record, records: Sequence[Record]) -> str:
    """A run's perplexity as small bars. All runs share one scale."""
    from math import log

    every = [value for one in records for _, value in series(one.line, "perplexity")]
    mine = [value for _, value in series(record.line, "perplexity")]
    if not mine:
        return ""
    low, high = log(min(every)), log(max(every))
    points = [
        mine[round(i * (len(mine) - 1) / (min(BINS, len(mine)) - 1 or 1))] for i in range(min(BINS, len(mine)))
    ]
    return "".join(BLOCKS[1 + round((log(value) - low) / ((high - low) or 1.0) * 7)] for value in points)
