"""The figures of benchmarks.worldlm, from rows that are written here."""

import math
from typing import Any

import pytest

from benchmarks.worldlm_figures import (
    bytes_ratio,
    chosen,
    figures,
    not_run,
    of_kind,
    perplexity,
    published_beside,
    ratio,
    spread,
)
from benchmarks.worldlm_rows import FLAT, ROWS

Row = dict[str, Any]


def row(name: str, test: float, *, trained: float | None = None, **more: Any) -> Row:
    """A row of two sites, whose perplexities are half and twice `test`."""
    states = {"received": test, "trained": test if trained is None else trained}
    leaves = {
        site: {
            "region": "r",
            **{
                state: {part: math.log(value * factor) for part in ("valid", "test")}
                for state, value in states.items()
            },
        }
        for site, factor in (("a", 0.5), ("b", 2.0))
    }
    root = more.pop("root", test)
    found = {part: math.log(root) for part in ("valid", "test")} if root else None
    base = {
        "row": name,
        "kind": "natural",
        "seed": 0,
        "leaves": leaves,
        "root": found,
        "regions": {},
        "bytes": None,
    }
    return base | more


ROWS_RUN = [
    row("flat:1", 90, trained=80, bytes={"sites": 100, "regions": 0}),
    row("local", 84, root=None),
    row("tuned", 78, root=None),
    row("fedper", 75, root=None),
    row("worldlm/cosine", 72, trained=64, root=99, bytes={"sites": 100, "regions": 20}),
    row("centralised", 45),
    row("flat:1", 60, kind="iid"),
    row("worldlm/cosine", 66, kind="iid"),
    row("worldlm/cosine", 90, kind="noise 0.5 1"),
    row("flat:1", 360, kind="noise 0.5 1"),
    row("worldlm/discounted", 81, kind="noise 0.5 1"),
]


def test_the_mean_is_of_losses_and_the_spread_of_perplexities() -> None:
    assert perplexity([row("flat:1", 90)], "flat:1", "received") == pytest.approx(90)  # sqrt(45 x 180)
    assert spread(row("flat:1", 90), "received") == pytest.approx(67.5)  # (180 - 45) / 2


def test_figures_by_their_definitions() -> None:
    found = figures(ROWS_RUN)
    assert found["worldlm"] == "worldlm/cosine" and found["flat"] == "flat:1"
    assert found["worldlm_vs_flat"] == pytest.approx(90 / 72)
    assert found["worldlm_vs_flat_trained"] == pytest.approx(80 / 64)
    assert found["worldlm_vs_best"] == pytest.approx(72 / 75)  # the best is fedper
    assert found["worldlm_vs_best_trained"] == pytest.approx(64 / 75, abs=1e-4)
    assert found["iid_vs_flat"] == pytest.approx(66 / 60)
    assert found["root_vs_flat"] == pytest.approx(99 / 90)
    assert found["noise_increase"] == pytest.approx(81 / 72)
    assert found["noise_increase_without_remedy"] == pytest.approx(90 / 72)
    assert found["noise_increase_flat"] == pytest.approx(4)
    assert found["flat_vs_centralised"] == pytest.approx(2)
    assert found["bytes_vs_flat"] == pytest.approx(1.2)


def test_what_was_not_run_has_no_figure_and_is_named() -> None:
    found = figures([row("flat:1", 90)])
    assert found == {"flat": "flat:1"}
    assert not_run(ROWS_RUN) == [name for name in ROWS if name not in {one["row"] for one in ROWS_RUN}]


def test_auto_is_the_figures_worldlm_once_it_is_run() -> None:
    found = figures([*ROWS_RUN, row("worldlm/auto", 60)])
    assert found["worldlm"] == "worldlm/auto" and found["worldlm_vs_flat"] == pytest.approx(1.5)


def test_the_best_of_others_is_known_once_all_are_run() -> None:
    assert "worldlm_vs_best" not in figures([one for one in ROWS_RUN if one["row"] != "local"])


def test_a_rate_is_chosen_on_the_validation_texts() -> None:
    rows = [row(name, 90) for name in FLAT]
    for one, (valid, test) in zip(rows, ((80, 70), (60, 99), (70, 50)), strict=True):
        for leaf in one["leaves"].values():
            leaf["received"] = {"valid": math.log(valid), "test": math.log(test)}
    assert chosen(rows, FLAT, "received") == FLAT[1]
    assert chosen([], FLAT, "received") is None


def test_a_ratio_is_over_the_seeds_that_both_rows_have() -> None:
    assert ratio({0: 2.0, 1: 3.0}, {1: 2.0, 2: 9.0}) == pytest.approx(math.e)
    assert ratio({0: 2.0}, {1: 2.0}) is None
    assert ratio({0: math.nan}, {0: 2.0}) is None


def test_the_published_ratios() -> None:
    lines = {line[0]: [value and round(value, 2) for value in line[1:]] for line in published_beside(ROWS_RUN)}
    assert [values[0] for values in lines.values()][:4] == [1.45, 1.12, 1.90, 0.87]
    assert lines["here, natural, as received"] == [1.25, 1.6, 2.0]
    assert lines["here, iid, as received"] == [0.91, None, None]


def test_bytes_are_of_all_links() -> None:
    assert bytes_ratio(of_kind(ROWS_RUN, "natural"), "worldlm/cosine", "local") is None
