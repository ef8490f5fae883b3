"""Great Expectations: a suite file run over one row of features."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemas
from photon_core.errors import DataError
from photon_core.jobs.telemetry import telemetry_off

Features = dict[str, int | float | str]
FOLDER = Path(schemas.__path__[0]) / "expectations"


@dataclass(frozen=True)
class Check:
    """What one expectation found.

    Attributes:
        expectation: Great Expectations' name for it.
        column: the feature it looked at.
        observed: the feature's value.
        limit: what was allowed: the expectation's own numbers, by name.
        success: whether the value is within it.
    """

    expectation: str
    column: str
    observed: int | float | str
    limit: dict[str, Any]
    success: bool


@dataclass(frozen=True)
class CheckResult:
    """The results of a suite, in the suite's order.

    Attributes:
        suite: its name.
        checks: one for every expectation.
        notes: what was put right on the way.
        remedies: column -> what the suite says of it: what is wrong, and what to do.
    """

    suite: str
    checks: list[Check]
    notes: list[str] = field(default_factory=list)
    remedies: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.success]


class ExpectationFailed(DataError):
    """A site's documents or shards do not meet the federation's expectations.

    Args:
        site: the site that stops.
        failed: the expectations that were not met.
        where: what was looked at, such as "stream 'news'".
        details: more about a column, such as the place of its first offender and the remedy.
    """

    def __init__(self, site: str, failed: list[Check], where: str, details: dict[str, str]) -> None:
        lines = [
            f"{check.expectation} of column {check.column}: observed {check.observed}, "
            f"allowed {_allowed(check.limit)}" + (f" ({details[check.column]})" if check.column in details else "")
            for check in failed
        ]
        super().__init__(f"site '{site}', {where}: " + "; ".join(lines))
        self.site = site
        self.failed = failed
        self.where = where
        self.details = details

    def __reduce__(self) -> tuple[type, tuple[str, list[Check], str, dict[str, str]]]:
        return type(self), (self.site, self.failed, self.where, self.details)


def load_suite(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """A suite from its file, in Great Expectations' own JSON form.

    Raises:
        DataError: it is missing or no suite.
    """
    path = folder / f"{name}.json"
    try:
        suite = json.loads(path.read_text())
        for expectation in suite["expectations"]:
            if not isinstance(expectation["kwargs"]["column"], str) or not isinstance(expectation["type"], str):
                raise ValueError("'type' and 'column' are texts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no expectation suite ({error!r})") from error
    if not suite["expectations"]:
        raise DataError(f"{path}: an expectation suite without expectations checks nothing")
    return dict(suite)


def run_suite(
    suite: dict[str, Any], features: Features, parameters: dict[str, Any], notes: list[str] | None = None
) -> CheckResult:
    """Every expectation of a suite, over one row whose columns are the features.

    Args:
        suite: as `load_suite` gives it.
        features: the row.
        parameters: what {"$PARAMETER": name} in the suite stands for.
        notes: for the result.

    Raises:
        DataError: the suite has an expectation, column or parameter that does not exist, or one that gave no
            result: nothing is passed over in silence.
    """
    _refuse_unknown(suite, features, parameters)
    outcomes = _validate(suite, features, parameters)
    checks = []
    for expectation in suite["expectations"]:
        kind, column = expectation["type"], expectation["kwargs"]["column"]
        outcome = outcomes.pop((kind, column), None)
        if outcome is None or outcome["success"] is None or outcome["raised"]:
            reason = outcome["raised"] if outcome else "it did not run"
            raise DataError(f"suite '{suite['name']}': {kind} of column {column} gave no result ({reason})")
        limit = {k: v for k, v in outcome["kwargs"].items() if k not in ("column", "batch_id")}
        checks.append(Check(kind, column, features[column], limit, bool(outcome["success"])))
    said = {e["kwargs"]["column"]: str((e.get("meta") or {}).get("notes", "")) for e in suite["expectations"]}
    return CheckResult(suite["name"], checks, notes or [], {column: text for column, text in said.items() if text})


def _refuse_unknown(suite: dict[str, Any], features: Features, parameters: dict[str, Any]) -> None:
    telemetry_off()
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    known = set(list_registered_expectation_implementations())
    seen = set()
    for expectation in suite["expectations"]:
        kind, kwargs = expectation["type"], expectation["kwargs"]
        where = f"suite '{suite['name']}': {kind}"
        if kind not in known:
            raise DataError(f"{where} is no expectation that Great Expectations knows")
        if kwargs["column"] not in features:
            raise DataError(f"{where}: no column '{kwargs['column']}'; there are {', '.join(features)}")
        if (kind, kwargs["column"]) in seen:
            raise DataError(f"{where} of column {kwargs['column']} is there twice; keep one")
        seen.add((kind, kwargs["column"]))
        for value in kwargs.values():
            if isinstance(value, dict) and value.get("$PARAMETER") not in parameters:
                raise DataError(
                    f"{where}: no parameter '{value.get('$PARAMETER')}'; there are {', '.join(parameters)}"
                )


def _validate(
    suite: dict[str, Any], features: Features, parameters: dict[str, Any]
) -> dict[tuple[str, str], dict[str, Any]]:
    import great_expectations as gx
    import pandas
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.exceptions import GreatExpectationsError

    config = DataContextConfig(
        # its default makes a temporary folder for a web page, and leaves it there
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("features").add_dataframe_asset("features")
    frame = pandas.DataFrame({name: [value] for name, value in features.items()})
    batch = asset.add_batch_definition_whole_dataframe("row").get_batch({"dataframe": frame})
    try:
        expectations = gx.ExpectationSuite(name=suite["name"], expectations=suite["expectations"])
        report = batch.validate(expectations, expectation_parameters=parameters)
    except (GreatExpectationsError, ValueError) as error:  # ValueError: arguments that it does not have
        raise DataError(f"suite '{suite['name']}': {error}") from error
    outcomes = {}
    for result in report.to_json_dict()["results"]:
        config = result["expectation_config"]
        outcomes[config["type"], config["kwargs"]["column"]] = {
            "success": result["success"],
            "kwargs": config["kwargs"],
            "raised": _raised(result["exception_info"]),
        }
    return outcomes


def _raised(info: dict[str, Any]) -> str:
    # either one entry, or one for each metric that failed
    entries = [info] if "raised_exception" in info else [e for e in info.values() if isinstance(e, dict)]
    return "; ".join(str(e["exception_message"]) for e in entries if e.get("raised_exception"))


def _allowed(limit: dict[str, Any]) -> str:
    words = {"min_value": "at least", "max_value": "at most", "value_set": "one of"}
    parts = [f"{words.get(name, name)} {_number(value)}" for name, value in limit.items()]
    return " and ".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
