"""Figures of benchmarks.worldlm from its rows: pure functions.

A ratio is exp of the difference of two mean losses: the means are over the sites, and then over the seeds that
both rows have. Both rows are in the same state, received or trained. Choices (a rate, a lambda) are by the
validation texts. Figures are of the test texts.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

from benchmarks.worldlm_rows import DITTO, FLAT, HIER, REMEDY, ROWS, WORLDLM
from benchmarks.worldlm_texts import NATURAL, Kind

Row = dict[str, Any]
IID = Kind(iid=True)
OURS = ("worldlm/auto", "worldlm/cosine")  # the first of them that was run is the figures' WorldLM
STATES = ("received", "trained")
PUBLISHED = {  # data and model -> perplexity of WorldLM, flat and centralised (arXiv 2405.14446)
    "The Pile, 75M": (73.82, 107.31, 85.81),
    "The Pile, 125M": (48.34, 53.92, 29.61),
    "mC4, 250M": (80.47, 153.27, 72.21),
    "C4, 75M (IID)": (167.31, 145.32, 67.01),
}
PUBLISHED_NOISE = {"WorldLM": (1.38, 1.40), "flat": (6.75, 6.75)}


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def mean_loss(row: Row, state: str, part: str = "test") -> float:
    """Mean loss over the sites, each with its own model on its own text; `root`: of the root's model."""
    if state == "root":
        return float(row["root"][part]) if row["root"] else math.nan
    return fmean(leaf[state][part] for leaf in row["leaves"].values())


def spread(row: Row, state: str) -> float:
    """Population standard deviation of the sites' perplexities."""
    return pstdev(math.exp(leaf[state]["test"]) for leaf in row["leaves"].values())


def by_seed(rows: Sequence[Row], name: str, state: str, part: str = "test") -> dict[int, float]:
    """Seed -> mean loss of a row."""
    return {row["seed"]: mean_loss(row, state, part) for row in rows if row["row"] == name}


def perplexity(rows: Sequence[Row], name: str, state: str) -> float | None:
    """Perplexity of the mean loss over sites and seeds; None if the row was not run, or has no such model."""
    found = by_seed(rows, name, state).values()
    return math.exp(fmean(found)) if found and not any(map(math.isnan, found)) else None


def ratio(above: dict[int, float], below: dict[int, float]) -> float | None:
    """exp of the difference of two rows' mean losses, over the seeds that both have; None if there are none."""
    common = sorted(above.keys() & below.keys())
    found = math.exp(fmean(above[seed] - below[seed] for seed in common)) if common else math.nan
    return None if math.isnan(found) else found


def chosen(rows: Sequence[Row], names: Iterable[str], state: str) -> str | None:
    """The row with the lowest mean loss on the validation texts; None if none of them was run."""
    tried = {name: found for name in names if (found := by_seed(rows, name, state, "valid"))}
    return min(tried, key=lambda name: fmean(tried[name].values()), default=None)


def ours(rows: Sequence[Row]) -> str | None:
    """The WorldLM of the figures."""
    run = {row["row"] for row in rows}
    return next((name for name in OURS if name in run), None)


def against(rows: Sequence[Row], above: str | None, below: str | None, state: str) -> float | None:
    """`ratio` of two rows by name."""
    if above is None or below is None:
        return None
    return ratio(by_seed(rows, above, state), by_seed(rows, below, state))


def against_best(rows: Sequence[Row], name: str | None, others: Iterable[str | None], state: str) -> float | None:
    """Perplexity of a row over that of the best of others; None unless all of them were run."""
    found = [against(rows, name, other, state) for other in others]
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """All figures of rows of any kind. Those whose rows were not run are not there."""
    natural, iid = of_kind(rows, NATURAL.name), of_kind(rows, IID.name)
    worldlm, flat = ours(natural), chosen(natural, FLAT, "received")
    others = (flat, "local", "tuned", "fedper")
    found: dict[str, Any] = {
        "worldlm": worldlm,
        "flat": flat,
        "ditto": chosen(natural, DITTO, "trained"),
        "worldlm_vs_flat": against(natural, flat, worldlm, "received"),
        "worldlm_vs_flat_trained": against(natural, flat, worldlm, "trained"),
        "worldlm_vs_best": against_best(natural, worldlm, others, "received"),
        "worldlm_vs_best_trained": against_best(natural, worldlm, others, "trained"),
        "iid_vs_flat": against(iid, ours(iid), chosen(iid, FLAT, "received"), "received"),
        "root_vs_flat": against(natural, worldlm, flat, "root"),
        "flat_vs_centralised": against(natural, flat, "centralised", "received"),
        "worldlm_vs_hierfavg": against(natural, HIER, worldlm, "received"),
        "bytes_vs_flat": bytes_ratio(natural, worldlm, flat),
    }
    found |= noise(rows, natural)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items() if value}


def noise(rows: Sequence[Row], natural: Sequence[Row]) -> dict[str, Any]:
    """Increase of perplexity by noise in one region: of WorldLM with the remedy and without, and of flat.

    Of several kinds of noise, the last counts.
    """
    kinds = [row["kind"] for row in rows if row["kind"].startswith("noise")]
    if not kinds:
        return {}
    noisy = of_kind(rows, kinds[-1])
    found: dict[str, Any] = {"noise": kinds[-1]}
    plain = ours(noisy)
    pairs = {"": (REMEDY, "worldlm/cosine"), "_without_remedy": (plain, plain), "_flat": (FLAT[0], FLAT[0])}
    for key, (name, without) in pairs.items():
        if name is not None and without is not None:
            noise_free = by_seed(natural, without, "received")
            found[f"noise_increase{key}"] = ratio(by_seed(noisy, name, "received"), noise_free)
    return found


def bytes_ratio(rows: Sequence[Row], above: str | None, below: str | None) -> float | None:
    """Bytes on all links, of the first row over the second one's."""
    sent = {row["row"]: sum(row["bytes"].values()) for row in rows if row["bytes"]}
    return sent[above] / sent[below] if above in sent and below in sent else None


def not_run(rows: Sequence[Row]) -> list[str]:
    """Rows of the natural texts that are missing."""
    run = {row["row"] for row in of_kind(rows, NATURAL.name)}
    return [name for name in ROWS if name not in run]


def published_beside(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Lines of (data, flat / WorldLM, WorldLM / centralised, flat / centralised): the paper's, then ours."""
    lines: list[tuple[Any, ...]] = [(name, f / w, w / c, f / c) for name, (w, f, c) in PUBLISHED.items()]
    for kind in (NATURAL, IID):
        some = of_kind(rows, kind.name)
        worldlm, flat = ours(some), chosen(some, FLAT, "received")
        pairs = ((flat, worldlm), (worldlm, "centralised"), (flat, "centralised"))
        for state in STATES if some else ():
            lines.append((f"here, {kind.name}, as {state}", *(against(some, a, b, state) for a, b in pairs)))
    return lines


def curve_of_swaps(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Lines of (swapped share, then the perplexity of each row as received and as trained)."""
    lines = []
    for swap in (0.0, 0.5, 1.0):
        some = of_kind(rows, Kind(swap=swap).name)
        for name in (*FLAT[:1], "fedper", *WORLDLM):
            values = [perplexity(some, name, state) for state in STATES]
            if any(values):
                lines.append((name, f"{swap:.0%}", *values))
    return lines
