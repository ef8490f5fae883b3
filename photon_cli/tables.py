"""Tables for people."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from photon_core.formatting import amount
from photon_core.run.history import summary
from photon_core.run.line import sentence
from schemas.manifests import RoundManifest

COLUMNS = ("round", "site", "tokens", "train loss", "validation perplexity", "bytes sent", "seconds")


WIDE = 200  # columns where there is no terminal: what scripts read is not wrapped


def wide_console() -> Console:
    """Standard output, as wide as its terminal."""
    apart = sys.stdout.isatty() or "COLUMNS" in os.environ
    return plain_console(width=None if apart else WIDE)


def plain_console(**options: Any) -> Console:
    """A console that shows texts as they are: some were written by strangers, and none is markup."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def rounds_table(rounds: list[RoundManifest]) -> Table:
    """A row for each site and round, and one for the whole of each round."""
    table = Table(*(_heading(name) for name in COLUMNS), header_style="bold", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for manifest in rounds:
        if manifest.kind != "train":
            table.add_row(str(manifest.round), Text(sentence(manifest)), style="bold", end_section=True)
            continue
        behind = rounds[-1].left_behind(manifest.round)
        for row in summary(manifest):
            style = "red" if row["left out"] not in ("", "not sampled") else None
            table.add_row(*(_cell(name, row[name]) for name in COLUMNS), style=style)
            if row["left out"]:
                table.add_row("", f"  {row['left out']}", style="dim")
        whole = {
            "round": manifest.round,
            "site": "all, rolled back" if behind else "all",
            "tokens": sum(update.tokens for update in manifest.updates.values()),
            "train loss": manifest.metrics.get("train_loss"),
            "validation perplexity": manifest.metrics.get("perplexity"),
            "bytes sent": sum(update.bytes for update in manifest.updates.values()),
            "seconds": sum(manifest.seconds.values()),
        }
        table.add_row(
            *(_cell(name, whole[name]) for name in COLUMNS), style="dim" if behind else "bold", end_section=True
        )
    return table


def _heading(name: str) -> str:
    return "validation\nperplexity" if name == "validation perplexity" else name


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if name == "train loss" else f"{value:.1f}" if name == "seconds" else f"{value:.2f}"
    if name == "bytes sent":
        return amount(int(str(value)))
    return f"{value:,}" if isinstance(value, int) and name != "round" else str(value)
