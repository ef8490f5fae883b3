"""The comparison of runs: the differences of their federation files, and their curves in one figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from photon_core.evidence.metrics import show
from photon_core.evidence.record import Record, series, traffic
from photon_core.formatting import amount, count, duration
from photon_core.report import curves, tables
from photon_core.report.page import Fact, Section, render_page
from photon_core.report.style import COLOURS, Picture, draw, label_ends, rounds_axis, short
from photon_core.report.tables import NOTHING, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABSENT = "absent"
OWN = ("run", "store", "storage", "deploy")  # keys that differ in every run, and that no result depends on


def names(records: Sequence[Record]) -> list[str]:
    """A name for each run: its own, or its URL if another run has the same name."""
    own = [record.run for record in records]
    return [record.run if own.count(record.run) == 1 else record.url for record in records]


def differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) for every key of the federation files with different values."""
    flat = [
        _flat({key: value for key, value in record.federation.items() if key not in OWN}) for record in records
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = []
    for key in keys:
        values = [one.get(key, ABSENT) for one in flat]
        if any(value != values[0] for value in values):
            rows.append((key, values))
    return rows


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """{"local.steps": "60", "sites.law.streams.text.source": ...}, with the items of lists by their names."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        items = [(item["name"], {k: v for k, v in item.items() if k != "name"} or "present") for item in value]
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def results(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """(name, its value in each run) for the progress, the scores and the costs of the runs."""
    rows: dict[str, list[str]] = {}

    def put(name: str, value: str) -> None:
        rows.setdefault(name, []).append(value)

    for record in records:
        done = record.trained
        scores = [value for _, value in series(record.line, "perplexity")]
        put("rounds", str(len(done)))
        put("perplexity, last", show("perplexity", scores[-1]) if scores else NOTHING)
        put("perplexity, best", show("perplexity", min(scores)) if scores else NOTHING)
        put("tokens trained", count(done[-1].total_tokens) if done else NOTHING)
        put("parameters", count(record.parameters) if record.rounds else NOTHING)
        put("sites", str(len(record.sites)))
        put("bytes moved", amount(traffic(record)[-1][0]) if done else NOTHING)
        put("time in rounds", duration(sum(sum(m.seconds.values()) for m in record.tried)) if done else NOTHING)
        put("sites excluded", str(sum(len(m.left_out) for m in done)))
    return list(rows.items())


def perplexities(records: Sequence[Record], against: str = "round") -> Picture | None:
    """Each run's perplexity by round, or by trained tokens.

    Args:
        records: records of the runs.
        against: unit of the horizontal axis, round or tokens.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, record in zip(names(records), records, strict=True):
        scored = [m for m in record.line if "perplexity" in m.metrics and (against == "round" or m.total_tokens)]
        if scored:
            lines[name] = [
                (float(m.round if against == "round" else m.total_tokens), m.metrics["perplexity"]) for m in scored
            ]
    if not lines:
        return None
    last = {name: line[-1][1] for name, line in lines.items()}
    alt = f"Perplexity of each run by {against}. Last values: " + ", ".join(
        f"{name} {value:.4g}" for name, value in sorted(last.items(), key=lambda item: item[1])
    )

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.subplots()
        axes.set_yscale("log")
        curves.plain_log(axes)
        axes.set_ylabel("perplexity, held-out text")
        for (_, line), colour in zip(lines.items(), _colours(len(lines)), strict=True):
            curves.plot(axes, line, colour, 2.0)
        if against == "round":
            rounds_axis(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axes.set_xlabel("tokens trained")
        ends = [(*line[-1], short(name, 22), colour)
                for (name, line), colour in zip(lines.items(), _colours(len(lines)), strict=True)]  # fmt: skip
        label_ends(axes, ends)

    return draw(f"perplexity-{against}", f"Perplexity by {against}", alt, 330, paint)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def render(records: Sequence[Record]) -> str:
    """The page of a comparison."""
    shown = names(records)
    differ = Table(("key", *shown), [Row((key, *values)) for key, values in differences(records)], words=True)
    outcome = Table(("", *shown), [Row((key, *values)) for key, values in results(records)])
    sections = [
        Section("curves", "Curves", pictures=[perplexities(records), perplexities(records, "tokens")]),
        Section("results", "Results", tables=[outcome]),
        Section(
            "differences", "Differences", "" if differ.rows else "The federation files are the same.",
            tables=[differ], always=True,
        ),
        *(Section(f"run-{i}", name, tables=[tables.site_table(record)])
          for i, (name, record) in enumerate(zip(shown, records, strict=True))),
    ]  # fmt: skip
    facts = [
        Fact(name, value, "perplexity, best")
        for name, value in zip(shown, dict(results(records))["perplexity, best"], strict=True)
    ]
    return render_page(
        title=" · ".join(shown), lead=f"{len(records)} runs side by side.", glance=facts, notes=[],
        sections=sections, footer="Made from the manifests in " + ", ".join(record.url for record in records),
    )  # fmt: skip
