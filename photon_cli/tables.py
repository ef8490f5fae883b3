"""Tables for people."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from photon_core.evidence.metrics import show
from photon_core.evidence.nodes import Reached, mean_of_sites
from photon_core.evidence.summary import columns, summary, whole
from photon_core.formatting import amount
from photon_core.run.line import sentence
from schemas.manifests import RoundManifest

WIDEST = 12  # most characters of a heading on one line
WIDE = 200  # columns without a terminal: output for scripts is not wrapped


def wide_console() -> Console:
    """Standard output, as wide as its terminal."""
    apart = sys.stdout.isatty() or "COLUMNS" in os.environ
    return plain_console(width=None if apart else WIDE)


def plain_console(**options: Any) -> Console:
    """A console that shows texts unchanged: none is markup, and some come from untrusted sites."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def rounds_table(rounds: list[RoundManifest]) -> Table:
    """A row for each site of each round, and one for the whole round."""
    names = _columns()
    table = Table(*(_heading(name) for name in names), header_style="bold", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for manifest in rounds:
        if manifest.kind != "train":
            table.add_row(str(manifest.round), Text(sentence(manifest)), style="bold", end_section=True)
            continue
        behind = rounds[-1].left_behind(manifest.round)
        for row in summary(manifest):
            style = "red" if row["left out"] not in ("", "not sampled") else None
            table.add_row(*(_cell(name, row[name]) for name in names), style=style)
            if row["left out"]:
                table.add_row("", f"  {row['left out']}", style="dim")
        together = {**whole(manifest), "site": "all, rolled back" if behind else "all"}
        table.add_row(
            *(_cell(name, together[name]) for name in names), style="dim" if behind else "bold", end_section=True
        )
    return table


def tree_table(nodes: Sequence[Reached]) -> Table:
    """A row for each node, indented by its depth. Perplexities are on the held-out text of the sites below."""
    names = ("node", "round", "parent's round", "own model", "sites' models", "local steps", "tokens")
    table = Table(*map(_heading, names), header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for node in nodes:
        sites = None if node.is_site else mean_of_sites(nodes, node.names)
        table.add_row(
            "  " * len(node.names) + (node.names[-1] if node.names else node.name),
            "-" if node.round is None else str(node.round),
            "" if node.entered is None else str(node.entered.round),
            _cell("perplexity", node.perplexity),
            "" if node.is_site else _cell("perplexity", sites),
            f"{node.steps:,}",
            f"{node.tokens:,}",
            style="red" if node.problem else None if node.is_site else "bold",
        )
    return table


def _columns() -> list[str]:
    return ["round", "site", "tokens", *(metric.column for _, metric in columns()), "bytes sent", "seconds"]


def _heading(name: str) -> str:
    """A heading, on two lines if it is wide."""
    return name if len(name) <= WIDEST else name.replace(" ", "\n")


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        metrics = {metric.column: metric.head for _, metric in columns()}
        return show(metrics.get(name, name), value)
    if name == "bytes sent":
        return amount(int(str(value)))
    return f"{value:,}" if isinstance(value, int) and name != "round" else str(value)
