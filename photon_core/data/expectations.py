"""Great Expectations: a suite file, run over one row of features."""

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
    """The result of one expectation.

    Attributes:
        expectation: name of the expectation in Great Expectations.
        column: name of the feature.
        observed: value of the feature.
        limit: allowed values: the expectation's numbers, by name.
        success: whether the value is allowed.
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
        suite: name of the suite.
        checks: results, one for each expectation.
        notes: sentences about what was repaired.
        remedies: column -> the suite's note: what is wrong, and what to do.
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
        site: name of the site that stops.
        failed: failed expectations.
        where: label of the data, such as "stream 'news'".
        details: column -> details, such as the place of the first offender and the remedy.
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
    """A suite from its file, in Great Expectations' JSON format.

    Raises:
        DataError: the file is missing or not a suite.
    """
    path = folder / f"{name}.json"
    try:
        suite = json.loads(path.read_text())
        for expectation in suite["expectations"]:
            if not isinstance(expectation["kwargs"]["column"], str) or not isinstance(expectation["type"], str):
                raise ValueError("'type' and 'column' are texts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an expectation suite ({error!r})") from error
    if not suite["expectations"]:
        raise DataError(f"{path}: the expectation suite has no expectations; write at least one")
    return dict(suite)


def run_suite(
    suite: dict[str, Any], features: Features, parameters: dict[str, Any], notes: list[str] | None = None
) -> CheckResult:
    """Run every expectation of a suite over one row whose columns are the features.

    Args:
        suite: loaded suite, from `load_suite`.
        features: values of the row by column.
        parameters: values of {"$PARAMETER": name} in the suite.
        notes: extra notes for the result.

    Raises:
        DataError: the suite names an expectation, column or parameter that does not exist, or an expectation
            gives no result: nothing is skipped without an error.
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
    hints = {e["kwargs"]["column"]: str((e.get("meta") or {}).get("notes", "")) for e in suite["expectations"]}
    remedies = {column: text for column, text in hints.items() if text}
    return CheckResult(suite["name"], checks, notes or [], remedies)


def _refuse_unknown(suite: dict[str, Any], features: Features, parameters: dict[str, Any]) -> None:
    telemetry_off()
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    known = set(list_registered_expectation_implementations())
    seen = set()
    for expectation in suite["expectations"]:
        kind, kwargs = expectation["type"], expectation["kwargs"]
        where = f"suite '{suite['name']}': {kind}"
        if kind not in known:
            raise DataError(f"{where} is not an expectation of Great Expectations; correct its name")
        if kwargs["column"] not in features:
            raise DataError(f"{where}: no column '{kwargs['column']}'; the columns are {', '.join(features)}")
        if (kind, kwargs["column"]) in seen:
            raise DataError(f"{where} of column {kwargs['column']} occurs twice; keep one")
        seen.add((kind, kwargs["column"]))
        for value in kwargs.values():
            if isinstance(value, dict) and value.get("$PARAMETER") not in parameters:
                raise DataError(
                    f"{where}: no parameter '{value.get('$PARAMETER')}'; the parameters are "
                    f"{', '.join(parameters)}"
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
        # the default creates a temporary folder for a web page and never removes it
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
    except (GreatExpectationsError, ValueError) as error:  # ValueError: unknown arguments
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
