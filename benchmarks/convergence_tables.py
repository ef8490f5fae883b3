"""Output of benchmarks.convergence: tables, then the last line."""

import math
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.common import finish, heading, table
from benchmarks.convergence_rows import BEST, CENTRAL, central_setting
from photon_core.hardware.exchange import communication_seconds, total_seconds
from photon_core.plan.costs import GIGABIT

if TYPE_CHECKING:
    from benchmarks.convergence import Setting

Row = dict[str, Any]


def averages(rows: list[Row]) -> dict[str, float]:
    """Perplexity of each row on the test texts, averaged over its seeds."""
    last: dict[str, list[float]] = {}
    for row in rows:
        last.setdefault(row["row"], []).append(row["test"])
    return {name: mean(values) for name, values in last.items()}


def show(at: dict[str, Any], others: float | None, rows: list[Row], setting: "Setting") -> None:
    """Print the tables, then the last line."""
    heading("Recipes" + (" (quick: too short to mean anything)" if setting.quick else ""), at, others)
    found = averages(rows)
    central = {name: found[name] for name in CENTRAL if name in found}
    lines = []
    for name, value in found.items():
        mine = [row for row in rows if row["row"] == name]
        per = [row["test"] for row in mine]
        against = (value / central[one] if one in central else None for one in CENTRAL)
        gigabytes, spread = mine[0]["curve"][-1][1] / 1e9, max(per) - min(per) if len(per) > 1 else None
        seconds = [round(mean(row[key] for row in mine)) for key in ("seconds", "cpu_seconds")]
        lines.append((name, value, spread, *against, mine[0]["synchronisations"], gigabytes, *seconds))
    columns = ("row", "test perplexity", "seeds' range", *(f"x {name}" for name in CENTRAL), "syncs", "GB moved",
               "seconds", "CPU s")  # fmt: skip
    title = f"{setting.tokens:,} tokens each; sites: {setting.rounds} rounds of {setting.steps} steps of " + (
        f"{setting.size.batch} sequences"
    )
    table(title, columns, lines)
    table(
        "Test perplexity by domain, first seed",
        ("row", *setting.domains),
        [(row["row"], *row["test_by_domain"].values()) for row in rows if row["seed"] == 0],
    )
    figures: dict[str, Any] = {"sync_reduction": setting.steps}
    if f"{BEST}/natural" in found and central:
        figures |= at_equal_time(rows, setting)
    for kind in ("natural", "iid"):
        if central and f"{BEST}/{kind}" in found:
            figures[f"perplexity_ratio_{kind}"] = round(found[f"{BEST}/{kind}"] / min(central.values()), 4)
    shown = [{key: value for key, value in row.items() if key != "setting"} for row in rows]
    finish({**figures, "recipe": BEST, "rows": shown, "others_share": others, "quick": setting.quick}, at)


def show_tuning(at: dict[str, Any], others: float | None, rows: list[Row], setting: "Setting") -> None:
    """Print a table of the tried settings and the best on validation. Test figures are not shown here."""
    heading("Centralised training, by batch size and rate", at, others)
    best: dict[str, Row] = {}
    lines = []
    for row in rows:
        name, batch, factor = central_setting(row["row"])
        sequences, rate = round(batch * setting.size.batch * len(setting.domains)), factor * math.sqrt(batch)
        lines.append((name, sequences, rate * CENTRAL[name]["lr"], factor, row["curve"][-1][2]))
        best[name] = min(best.get(name, row), row, key=lambda row: row["curve"][-1][2])
    table("One seed", ("row", "sequences a step", "AdamW's rate", "factor", "validation perplexity"), lines)
    tried = {row["row"]: round(row["curve"][-1][2], 2) for row in rows}
    finish({"best": {k: row["row"] for k, row in best.items()}, "tried": tried, "others_share": others}, at)


def at_equal_time(rows: list[Row], setting: "Setting") -> dict[str, float]:
    """Print a table of the recipe against centralised training at the time when the recipe has finished."""
    ours = next(row for row in rows if row["row"] == f"{BEST}/natural")
    others = {row["row"]: row for row in reversed(rows) if row["row"] in CENTRAL}  # the first seed's
    sites, lines, ratios = len(setting.domains), [], []
    exchange = ours["curve"][-1][1] / (2 * sites * setting.rounds)  # bytes, there and back
    for paid in (False, True):
        step = min(row["cpu_seconds"] for row in others.values()) / (setting.total * sites) if paid else 0.0
        talk = communication_seconds("parameter server", sites, exchange, GIGABIT)
        mine = total_seconds(setting.rounds, setting.steps * step, talk)
        reached = {}
        for name, row in others.items():
            syncs = row["synchronisations"]
            gradients = row["curve"][-1][1] / (2 * (sites - 1) * syncs)
            talk = communication_seconds("ring all-reduce", sites, gradients, GIGABIT)
            theirs = total_seconds(1, step * setting.total / syncs, talk)
            reached[name] = reading(row["curve"], setting.tokens * min(1.0, mine / theirs / syncs))
        ratio = ours["curve"][-1][2] / min(reached.values())
        lines.append((step, mine, *(reached.get(name) for name in CENTRAL), ratio))
        ratios.append(ratio)
    columns = ("seconds a step", f"{BEST} takes", *CENTRAL, "ratio to the better")
    table("At equal wall-clock, links of 1 Gbit/s, validation perplexity", columns, lines)
    free, paid = (round(ratio, 4) for ratio in ratios)
    return {"perplexity_ratio_wall_clock": free, "perplexity_ratio_wall_clock_paid": paid}


def reading(curve: list[tuple[int, int, float]], tokens: float) -> float:
    """Perplexity of a curve after a number of tokens, with its logarithm interpolated linearly."""
    import numpy as np

    at, _, perplexities = zip(*curve, strict=True)
    return float(np.exp(np.interp(tokens, at, np.log(perplexities))))
