"""The table of metrics in docs/concepts.md: `python -m photon_core.evidence.metrics_table` writes it."""

import re
from pathlib import Path

from photon_core.evidence.metrics import REGISTER, How, Metric

PATH = Path(__file__).parents[2] / "docs" / "concepts.md"
HEAD = "| name | reported by | unit | nodes | sites | meaning |"
TABLE = re.compile(rf"^{re.escape(HEAD)}\n(?:\|.*\n)+", re.MULTILINE)
WORDS: dict[How, str] = {
    "": "",
    "tokens": "mean by tokens",
    "weights": "weighted mean",
    "samples": "mean by samples",
    "sum": "sum",
    "max": "largest",
    "mean": "mean",
}


def table() -> str:
    """A row a metric, in the order of the register."""
    rows = [_row(by, metric) for (by, _), metric in REGISTER.items()]
    return "\n".join([HEAD, "|---|---|---|---|---|---|", *rows]) + "\n"


def _row(by: str, metric: Metric) -> str:
    cells = (f"`{metric.name}`", by, metric.unit or "-", WORDS[metric.nodes], WORDS[metric.sites], metric.meaning)
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    """docs/concepts.md with the table of today's register."""
    return TABLE.sub(lambda _: table(), PATH.read_text("utf-8"), count=1)


if __name__ == "__main__":
    PATH.write_text(page(), "utf-8")
