"""Output of benchmarks.worldlm: tables, then the last line."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks import worldlm_figures as figures
from benchmarks.common import finish, heading, table

Row = dict[str, Any]


def show(
    at: Mapping[str, Any], others: float | None, rows: Sequence[Row], setting: Mapping[str, Any], quick: bool
) -> None:
    """Print the tables of all kept rows, then the last line.

    Args:
        at: the machine.
        others: share of the cores' time that other work took.
        rows: rows of all kinds.
        setting: values that the rows have in common.
        quick: flag: the rows are too short to mean anything.
    """
    heading("A tree of federations" + (" (quick: too short to mean anything)" if quick else ""), at, others)
    print(
        f"{setting['tokens']:,} tokens a row; {setting['rounds']} rounds of the root, {setting['calls']} rounds "
        f"of a region in each, {setting['steps']} steps of {setting['batch']} sequences a site and round"
    )
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = figures.of_kind(rows, kind)
        _perplexities(kind, some)
        _by_site(kind, some)
    if any(row["kind"].startswith("swap") for row in rows):
        columns = ("row", "swapped", "as received", "as trained")
        table("Texts of two sites swapped", columns, figures.curve_of_swaps(rows))
    columns = ("data", "flat / WorldLM", "WorldLM / centralised", "flat / centralised")
    table("Published ratios, and those here", columns, figures.published_beside(rows))
    missing = figures.not_run(rows)
    if missing:
        print(f"not run: {', '.join(missing)}")
    shown = [{key: value for key, value in row.items() if key != "setting"} for row in rows]
    last = {**figures.figures(rows), "not_run": missing, "rows": shown, "others_share": others, "quick": quick}
    finish(last, at)


def _perplexities(kind: str, rows: Sequence[Row]) -> None:
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        mine = [row for row in rows if row["row"] == name]
        values: list[Any] = []
        for state in figures.STATES:
            values += [figures.perplexity(rows, name, state), fmean(figures.spread(row, state) for row in mine)]
        sent = sum(mine[0]["bytes"].values()) / 1e9 if mine[0]["bytes"] else None
        spent = [round(fmean(row[key] for row in mine)) for key in ("seconds", "cpu_seconds")]
        busy = [row["others_share"] for row in mine if row["others_share"] is not None]
        other = f"{fmean(busy):.0%}" if busy else "-"
        lines.append((name, len(mine), *values, figures.perplexity(rows, name, "root"), sent, *spent, other))
    columns = ("row", "seeds", "as received", "+-", "as trained", "+-", "root", "GB moved", "seconds", "CPU s",
               "other work")  # fmt: skip
    table(f"{kind}: test perplexity of the sites' models on their own texts; +- over the sites", columns, lines)


def _by_site(kind: str, rows: Sequence[Row]) -> None:
    """A line for each row of the first seed and each state; the regions' own models at their sites."""
    from math import exp

    first = [row for row in rows if row["seed"] == 0]
    if not first:
        return
    sites = list(first[0]["leaves"])
    lines = [
        (row["row"], state, *(exp(leaf[state]["test"]) for leaf in row["leaves"].values()))
        for row in first
        for state in figures.STATES
    ]
    table(f"{kind}: test perplexity by site, first seed", ("row", "as", *sites), lines)
    regions = list(dict.fromkeys(leaf["region"] for leaf in first[0]["leaves"].values()))
    own = [(row["row"], *(exp(row["regions"][r]["test"]) for r in regions)) for row in first if row["regions"]]
    if own:
        table(f"{kind}: the regions' own models on their sites' texts", ("row", *regions), own)
