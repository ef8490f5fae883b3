"""docs/architecture.md names files, classes and functions that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
NAMED = re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", TEXT)


def names(path: Path) -> set[str]:
    """Top-level names of a file, and the methods of its classes as Class.method."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_place_that_the_page_names_exists() -> None:
    assert len(NAMED) > 30
    full = [(path, name) for path, name in NAMED if "/" in path]
    missing = [
        f"{path}: {name}"
        for path, name in full
        if not (ROOT / path).is_file() or (name and name not in names(ROOT / path))
    ]
    assert missing == []


def test_the_page_shows_the_storeys_that_the_tests_hold() -> None:
    from tests.test_house import FLOORS

    picture = TEXT.split("```text\n")[1].split("```")[0]
    rooms = [room for room in FLOORS.split() if not room.startswith("schemas/")]
    places = [picture.find(room.removeprefix("photon_core/")) for room in rooms]
    assert min(places) >= 0, [room for room, place in zip(rooms, places, strict=True) if place < 0]
