"""The tables of a report: sites, rounds, problems, data checks, hashes and versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from photon_core.evidence.metrics import show
from photon_core.evidence.record import Record, busy, thin
from photon_core.formatting import amount, duration
from photon_core.report.times import straggler
from photon_core.run.line import sentence

ROUNDS = 60  # maximum number of rows of rounds
TROUBLES = 300
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        head: names of the columns.
        rows: rows with one cell a column.
        title: title above the table; by default the section's.
        words: flag: cells are text, aligned left; else a name and numbers, aligned right.
        fold: flag: collapsed until a reader opens it.
        note: note below the table.
    """

    head: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    title: str = ""
    words: bool = False
    fold: bool = False
    note: str = ""


def site_table(record: Record) -> Table:
    """Each site's contribution, over all rounds and in its last round."""
    table = Table(
        ("site", "rounds", "tokens", "tokens/s", "bytes sent", "last round", "loss", "perplexity", "excluded")
    )
    for site in record.sites:
        updates = [m.updates[site] for m in record.trained if site in m.updates]
        scores = [m.evaluations[site] for m in record.line if site in m.evaluations]
        left_out = sum(site in m.left_out for m in record.trained)
        metrics = updates[-1].metrics if updates else {}
        last = next((m for m in reversed(record.trained) if site in m.updates), None)
        cells = (
            site,
            str(len(updates)),
            f"{sum(update.tokens for update in updates):,}",
            _value(metrics, "tokens_per_second"),
            amount(sum(update.bytes for update in updates)),
            seconds(busy(last, site)) if last else NOTHING,
            _value(metrics, "train_loss"),
            _value(scores[-1] if scores else {}, "perplexity"),
            str(left_out),
        )
        table.rows.append(Row(cells, "bad" if left_out and not updates else ""))
    return table


def round_table(record: Record) -> Table:
    """A row for each round, the newest first."""
    rounds = thin(record.rounds[1:], ROUNDS)
    hidden = len(record.rounds[1:]) - len(rounds)
    table = Table(
        ("round", "perplexity", "train loss", "sites", "tokens", "bytes sent", "seconds", "last site"),
        title="All rounds", fold=True, note=f"{hidden} rounds in between are not listed." if hidden else "",
    )  # fmt: skip
    for manifest in reversed(rounds):
        last, behind = straggler(manifest), record.rounds[-1].left_behind(manifest.round)
        mark = (
            f", {manifest.kind} to {manifest.to}" if manifest.to is not None else ", rolled back" if behind else ""
        )
        cells = (
            f"{manifest.round}{mark}",
            _value(manifest.metrics, "perplexity"),
            _value(manifest.metrics, "train_loss"),
            f"{len(manifest.updates)} of {len(manifest.sampled)}",
            f"{sum(update.tokens for update in manifest.updates.values()):,}",
            amount(sum(update.bytes for update in manifest.updates.values())),
            f"{sum(manifest.seconds.values()):,.1f}",
            f"{last[0]} (+{duration(last[1])})" if last else NOTHING,
        )
        table.rows.append(Row(cells, "bad" if manifest.left_out else ""))
    return table


def trouble_table(record: Record) -> Table:
    """Every site that was excluded, not evaluated, or retried, or whose clock is wrong; the newest first."""
    troubles: list[tuple[str, str, str, str]] = []
    for manifest in reversed(record.rounds[1:]):
        t = str(manifest.round)
        if manifest.kind != "train":
            troubles.append((t, "all", manifest.kind, sentence(manifest)))
        troubles += [(t, site, "excluded", why) for site, why in sorted(manifest.left_out.items())]
        troubles += [(t, site, "not evaluated", why) for site, why in sorted(manifest.not_evaluated.items())]
        troubles += [
            (t, site, "recovered", note) for site, notes in sorted(manifest.incidents.items()) for note in notes
        ]
        troubles += [
            (t, site, "clock", f"its clock is off by {abs(by):,.1f} s or more; its steps were moved by that much")
            for site, by in sorted(manifest.clocks.items())
        ]
    rows = [Row(cells, "bad" if cells[2] == "excluded" else "") for cells in troubles[:TROUBLES]]
    more = len(troubles) - len(rows)
    return Table(
        ("round", "site", "what", "why"),
        rows,
        words=True,
        note=f"{more} older ones are not listed." if more > 0 else "",
    )


def check_table(record: Record) -> Table:
    """The results of the data checks before the last round's training, as the sites report them."""
    rows = []
    for site, update in sorted(record.updates.items()):
        for check in update.checks[:50]:
            good = bool(check.get("success"))
            expectation = str(check.get("expectation", ""))[:80].removeprefix("expect_column_").replace("_", " ")
            cells = (
                site, str(check.get("column", ""))[:80], short_value(check.get("observed")),
                expectation, limits(check.get("limit")), "met" if good else "NOT MET",
            )  # fmt: skip
            rows.append(Row(cells, "" if good else "bad"))
    return Table(("site", "column", "observed", "expected", "limit", "result"), rows, words=True, fold=True,
                 title="Every expectation of every site")  # fmt: skip


def limits(limit: Any) -> str:
    if not isinstance(limit, dict):
        return ""
    words = {"min_value": "at least", "max_value": "at most", "value_set": "one of"}
    return ", ".join(f"{words.get(name, name)} {short_value(value)}" for name, value in list(limit.items())[:4])[
        :200
    ]


def short_value(value: Any) -> str:
    """A value that a site reports, on one line."""
    if isinstance(value, list):
        return ", ".join(short_value(item) for item in value[:3])
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 10**18 else "?"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _value(metrics: Mapping[str, float], name: str) -> str:
    return show(name, metrics[name]) if name in metrics else NOTHING


def seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.1f} s"


def version_table(record: Record) -> Table:
    """The coordinator's versions, and different versions at the sites."""
    newest = record.rounds[-1] if record.rounds else record.run_manifest
    ours = newest.versions if newest else {}
    rows = [Row((name, version, _others(record, name, version))) for name, version in ours.items()]
    if not any(row.cells[2] for row in rows):
        return Table(("package", "version"), [Row(row.cells[:2]) for row in rows], words=True, title="Versions")
    return Table(("package", "version", "elsewhere"), rows, words=True, title="Versions")


def _others(record: Record, name: str, version: str) -> str:
    others: dict[str, list[str]] = {}
    for site, update in sorted(record.updates.items()):
        if (other := update.versions.get(name, "absent")) != version:
            others.setdefault(other[:40], []).append(site)
    return "; ".join(f"{other} at {', '.join(sites)}" for other, sites in others.items())


def hash_table(record: Record) -> Table:
    """The hashes of the run's inputs and results."""
    rows = []
    if record.run_manifest:
        rows += [
            Row(("federation file", record.run_manifest.federation_sha256)),
            Row(("tokenizer", record.run_manifest.tokenizer_sha256)),
        ]
    if record.rounds:
        last = record.rounds[-1]
        rows += [
            Row(("initial model", record.rounds[0].model_sha256)),
            Row((f"model of round {last.round}", last.model_sha256)),
            Row((f"manifest of round {last.round}, which covers all earlier ones", record.last_sha256)),
        ]
        if last.federation_sha256 != (record.run_manifest.federation_sha256 if record.run_manifest else ""):
            rows.append(Row((f"federation file at round {last.round}", last.federation_sha256)))
    rows += [Row((f"data of {site}", update.data_sha256)) for site, update in sorted(record.updates.items())]
    return Table(("what", "sha256"), rows, words=True, title="Hashes")
