"""The exported JSON schema: in step with the model, and of the same mind about good and bad files."""

import copy
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from schemas.docs.json_schema import PATH, federation_schema, text
from schemas.federation import Federation

FULL: dict[str, Any] = {
    "run": "r",
    "store": "/store",
    "tokenizer": "bytes",
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2},
    "rounds": {"count": 5, "deadline": "30m"},
    "local": {"steps": 10, "batch_size": 2, "optimizer": {"betas": [0.9, 0.95]}},
    "sites": [{"name": "a", "streams": [{"name": "s", "source": "s.txt"}]}],
}
PARENT = {"store": "/world", "run": "world", "member": "europe"}
PRESET: dict[str, Any] = {**FULL, "preset": "75M", "local": {"steps": 10}, "rounds": {}, "model": {}}


def change(data: dict[str, Any], place: str, value: Any = None) -> dict[str, Any]:
    """A copy with the value at a dotted place, or without the key."""
    data = copy.deepcopy(data)
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    here: Any = data
    for part in above:
        here = here[part]
    if value is None:
        del here[last]
    else:
        here[last] = value
    return data


GOOD = [
    FULL,
    PRESET,
    change(change(PRESET, "rounds"), "model"),
    change(FULL, "local", {"batch_size": 2}),
    {
        **FULL,
        "local": {"batch_size": 2},
        "preset": None,
        "server": {"guard": {"tries": 2}, "mean": "median"},
        "sites": [{**FULL["sites"][0], "name": name} for name in "abc"],
    },
    change(FULL, "model", {"preset": "7B"}) | {"recipe": "diloco"},
    change(FULL, "model", {"preset": "7B", "n_layers": 2}) | {"recipe": None},
    change(FULL, "local.steps"),
    {**FULL, "local": {"batch_size": 2}, "server": {"lr": 1.0}},
    change(change(change(FULL, "model", {"preset": "1.3B"}), "rounds"), "local", {"steps": 4}),
    change(FULL, "rounds.deadline", 90),
    change(FULL, "sites.0.pool", "west"),
    {**FULL, "federations": [{"name": "europe", "federation": "europe.yaml"}], "worldlm": {"key_layers": 1}},
    change({**FULL, "federations": [{"name": "europe"}]}, "sites"),
    change({**FULL, "parent": PARENT}, "rounds"),
    change({**FULL, "parent": PARENT}, "rounds.count"),
    change({**PRESET, "parent": PARENT}, "rounds"),
    {**FULL, "worldlm": {"key_layers": ["blocks.0"], "residuals": "off"}},
]
BAD = [
    change(FULL, "model"),
    change(FULL, "rounds"),
    change(FULL, "rounds.count"),
    change(FULL, "local.batch_size"),
    {**FULL, "local": {"batch_size": 2}, "recipe": None},
    change(FULL, "model", {"preset": "7B"}),
    change(FULL, "model", {"preset": "1.3B"}) | {"recipe": None, "rounds": {}},
    change(change(FULL, "model", {"preset": "1.3B"}), "local.steps"),
    change(FULL, "model.d_model"),
    change(FULL, "store"),
    change(FULL, "sites", []),
    change(FULL, "sites.0.streams", []),
    change(FULL, "run", "../up"),
    change(FULL, "run", "a..b"),
    change(FULL, "sites.0.name", "a b"),
    change(FULL, "rounds.count", 0),
    change(FULL, "rounds.count", True),
    change(FULL, "rounds.deadline", "soon"),
    change(FULL, "local.optimizer.betas", [0.9]),
    change(FULL, "zebra", 1),
    change(FULL, "local.optimzer", {}),
    change(FULL, "preset", "2B"),
    change(PRESET, "local"),
    change(PRESET, "local.steps"),
    change({**FULL, "federations": []}, "sites"),
    {**FULL, "federations": [{"federation": "europe.yaml"}]},
    {**FULL, "parent": PARENT},
    change({**FULL, "parent": PARENT}, "parent.member"),
    {**FULL, "rounds": {"count": None}},
    {**FULL, "worldlm": {"key_layers": 1.5}},
    {**FULL, "worldlm": {"key_layers": []}},
]


def test_the_file_is_in_step_with_the_model() -> None:
    assert PATH.read_text("utf-8") == text(), "run `python -m schemas.docs.json_schema`"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(federation_schema())


@pytest.mark.parametrize("data", GOOD)
def test_good_files(data: dict[str, Any]) -> None:
    Draft202012Validator(json.loads(text())).validate(data)
    Federation.model_validate(data)


@pytest.mark.parametrize("data", BAD)
def test_bad_files(data: dict[str, Any]) -> None:
    assert not Draft202012Validator(json.loads(text())).is_valid(data)
    with pytest.raises(ValidationError):
        Federation.model_validate(data)


def test_every_key_has_its_description_or_speaks_for_itself() -> None:
    described = json.dumps(federation_schema())
    assert described.count('"description"') > 40
