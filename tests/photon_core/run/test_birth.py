"""What a run keeps from its birth: its recipe, which later versions and files do not change unasked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from photon_cli.main import app
from photon_core.errors import FederationError
from photon_core.run.birth import as_born
from photon_core.run.run import run_of
from photon_core.run.updates import check_open
from schemas.reading.load import load_federation
from tests.photon_cli.conftest import committed as committed  # the fixture

Committed = Callable[..., Path]


def rewrite(file: Path, **changes: Any) -> None:
    """The file with other sections; without those that are given as ...."""
    data = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_born_run_that_the_rule_would_change_is_refused_with_the_line_to_write(
    committed: Committed, command: str
) -> None:
    """The store is as an older version left it: AdamW, because the file has `local.optimizer`."""
    file = committed(1)
    rewrite(file, recipe=...)
    with pytest.raises(FederationError, match="write `recipe: null`, and beside it") as refused:
        CliRunner().invoke(app, [command, str(file)], catch_exceptions=False)
    assert "this file has recipe: unlike-sites, which changes local.optimizer, local.optimizer_state" in str(
        refused.value
    )
    rewrite(file, recipe=None)
    assert CliRunner().invoke(app, ["plan", str(file)], catch_exceptions=False).exit_code == 0


def test_no_round_and_no_site_works_for_it(committed: Committed) -> None:
    file = committed(1)
    rewrite(file, recipe=...)
    federation = load_federation(file)
    with pytest.raises(FederationError, match="write `recipe: null`"):
        check_open(federation, 2)


def test_what_has_the_same_settings_by_another_name_goes_on(committed: Committed) -> None:
    file = committed(1)
    rewrite(
        file, recipe="local-sgd", local=yaml.safe_load(file.read_text())["local"] | {"optimizer_state": "keep"}
    )
    check_open(load_federation(file), 2)


def test_a_run_that_is_older_than_recipes_goes_on_with_none(committed: Committed) -> None:
    file = committed(1)
    birth = file.parent / "store" / "tiny" / "run.json"
    data = json.loads(birth.read_text())
    del data["federation"]["recipe"], data["federation"]["server"]["schedule"]
    birth.write_text(json.dumps(data))
    check_open(load_federation(file), 2)


def test_schedules_end_where_they_did_unless_the_file_says_where(committed: Committed) -> None:
    """The key is in run.json as it has always been: nothing new is needed to read an old store."""
    file = committed(1, local={"schedule": {"total_steps": None, "warmup_steps": None}},
                     server={"schedule": {"name": "linear"}})  # fmt: skip
    run = run_of(load_federation(file))
    first = load_federation(file)
    assert as_born(run, first) is first
    longer = load_federation(file, {"rounds.count": 40})
    born = as_born(run, longer)
    assert (longer.schedule_steps, born.schedule_steps, born.server.schedule.total_rounds) == (120, 6, 2)
    assert born.local.schedule.warmup(born.schedule_steps) == 1, "not that of 40 rounds"
    assert born.rounds.count == 40
    said = load_federation(
        file, {"rounds.count": 40, "local.schedule.total_steps": 90, "server.schedule.total_rounds": 30}
    )
    assert as_born(run, said) == said
    late = load_federation(file, {"rounds.count": 40, "local.schedule.warmup_steps": 50})
    with pytest.raises(FederationError, match=r"^local.schedule.warmup_steps: 50 steps of warm-up, but .* at 6 "):
        as_born(run, late)


def test_a_schedules_end_that_the_recipe_brings_is_no_choice_of_the_file(committed: Committed) -> None:
    """recipe: photon stretches the size's schedule to the batch: 120000 steps of 32 sequences, 60000 of 64."""
    born = {"batch_size": 32, "schedule": {"total_steps": 120_000}}  # as recipe: photon writes it into run.json
    file = committed(1, recipe="photon", preset="125M", local=born)
    run, data = run_of(load_federation(file)), yaml.safe_load(file.read_text())
    rewrite(file, local=data["local"] | {"batch_size": 64, "schedule": {}})
    larger = load_federation(file)
    assert (larger.schedule_steps, as_born(run, larger).schedule_steps) == (60_000, 120_000)
    assert as_born(run, as_born(run, larger)) == as_born(run, larger)
    rewrite(file, local=data["local"] | {"batch_size": 64, "schedule": {"total_steps": 70_000}})
    assert as_born(run, load_federation(file)).schedule_steps == 70_000, "the file's own"


def test_a_warm_up_that_is_a_share_of_the_run_keeps_its_length_under_a_constant_rate(committed: Committed) -> None:
    file = committed(1, local={"schedule": {"name": "constant", "total_steps": None, "warmup_steps": None}},
                     rounds={"count": 4})  # fmt: skip
    longer = load_federation(file, {"rounds.count": 100})
    born = as_born(run_of(longer), longer)
    lengths = [f.local.schedule.warmup(f.schedule_steps) for f in (load_federation(file), longer, born)]
    assert lengths == [3, 30, 3]
