"""docs/federation.md: in step with the schema, whole, and its links lead somewhere."""

import re

from schemas.docs import reference
from schemas.reading.remedies import _fields

PAGE = reference.PATH.read_text("utf-8")


def test_the_page_is_in_step_with_the_schema() -> None:
    assert reference.text() == PAGE, "run `python -m schemas.docs.json_schema`"


def test_every_key_is_there() -> None:
    missing = [path for path in _fields() if f"| `{path[-1]}` |" not in PAGE]
    assert missing == []


def test_links_lead_to_headings() -> None:
    headings = {reference._anchor(heading) for heading in re.findall(r"^## `(.*)`$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= headings
    assert "localoptimizer" in headings


def test_what_a_preset_or_recipe_brings_is_asked_for_only_without() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if "**required** unless a preset or recipe" in line]
    keys = {row[0].strip("| `") for row in rows}
    shape = {"n_layers", "d_model", "n_heads"}
    assert keys == {"model", "rounds", "local", "count", "steps", "batch_size", *shape}
