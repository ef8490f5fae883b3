"""Suites: what Great Expectations would pass over in silence is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from photon_core.data.expectations import FOLDER, Features, load_suite, run_suite
from photon_core.errors import DataError

ROW: Features = {"a": 3, "b": "x"}
KIND = "expect_column_max_to_be_between"


def suite(*expectations: dict[str, Any]) -> dict[str, Any]:
    return {"name": "mine", "expectations": list(expectations)}


def at_most(limit: Any, column: str = "a", kind: str = KIND) -> dict[str, Any]:
    return {"type": kind, "kwargs": {"column": column, "max_value": limit}}


def test_observed_limit_and_order() -> None:
    one_of = {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "b", "value_set": ["x"]}}
    result = run_suite(suite(one_of, at_most({"$PARAMETER": "limit"})), ROW, {"limit": 2})
    assert [(c.column, c.observed, c.limit, c.success) for c in result.checks] == [
        ("b", "x", {"value_set": ["x"]}, True),
        ("a", 3, {"max_value": 2}, False),
    ]
    assert [check.column for check in result.failed] == ["a"]


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (at_most(2, kind="expect_column_max_to_be_betwen"), "is not an expectation of Great Expectations"),
        (at_most(2, column="c"), "no column 'c'; the columns are a, b"),
        (at_most({"$PARAMETER": "limt"}), "no parameter 'limt'; the parameters are limit"),
        (at_most("many"), "suite 'mine'"),
        ({"type": KIND, "kwargs": {"column": "a", "maximum": 2}}, "suite 'mine'"),
        (at_most(2, column="b"), "expect_column_max_to_be_between of column b gave no result"),
    ],
)
def test_nothing_is_passed_over(expectation: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_suite(suite(expectation), ROW, {"limit": 2})


def test_the_same_expectation_twice_is_refused() -> None:
    with pytest.raises(DataError, match="occurs twice"):
        run_suite(suite(at_most(2), at_most(3)), ROW, {})


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"expectations": [{}]}', '{"expectations": []}'])
def test_what_is_no_suite_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "mine.json").write_text(content)
    with pytest.raises(DataError, match=r"mine\.json: (not an|the) expectation suite"):
        load_suite("mine", tmp_path)


@pytest.mark.parametrize("name", ["documents", "shards"])
def test_our_suites_are_in_great_expectations_own_form(name: str) -> None:
    import great_expectations as gx

    content = json.loads((FOLDER / f"{name}.json").read_text())
    assert len(gx.ExpectationSuite(**content).expectations) == len(load_suite(name)["expectations"])
