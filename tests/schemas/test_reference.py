"""docs/federation.md: in step with the schema, whole, and its links lead somewhere."""

import re

from schemas import reference
from schemas.remedies import _fields

PAGE = reference.PATH.read_text("utf-8")


def test_the_page_is_in_step_with_the_schema() -> None:
    assert reference.text() == PAGE, "run `python -m schemas.json_schema`"


def test_every_key_is_there() -> None:
    missing = [path for path in _fields() if f"| `{path[-1]}` |" not in PAGE]
    assert missing == []


def test_links_lead_to_headings() -> None:
    headings = {reference._anchor(heading) for heading in re.findall(r"^## `(.*)`$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= headings
    assert "localoptimizer" in headings
