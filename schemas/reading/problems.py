"""Pydantic's findings as messages for people: file, line, key, what is wrong, what to write instead."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.reading.remedies import names, nearest_key, remedy
from schemas.reading.yaml_lines import Key
from schemas.secrets import has_secret

Finding = tuple[Key, ErrorDetails, list[str]]  # place, finding, and missing keys of the same section


def describe(
    error: ValidationError,
    data: Any,
    file: str,
    lines: Mapping[Key, int],
    overridden: frozenset[Key] = frozenset(),
) -> list[str]:
    """One line for each problem, in the order of the file.

    Args:
        error: ValidationError that Federation.model_validate raised on data.
        data: validated mapping, as written (without preset values).
        file: name of the file, for the messages.
        lines: line of every key (schemas/reading/yaml_lines.py).
        overridden: keys whose values came from the caller, not from the file.
    """
    places = [(_place(details), details) for details in error.errors(include_url=False)]
    missing = [place for place, details in places if details["type"] == "missing"]
    found = [(p, d, [str(m[-1]) for m in missing if m[:-1] == p[:-1]]) for p, d in places]
    found = [item for item in found if item[1]["type"] != "missing" or not _explained(item[0], found)]
    found.sort(key=lambda item: line_of(item[0], lines))
    return [
        locate(place, remedy(names(place), details, beside), data, file, lines, overridden)
        for place, details, beside in found
    ]


def locate(
    place: Key,
    message: str,
    data: Any,
    file: str,
    lines: Mapping[Key, int],
    overridden: frozenset[Key] = frozenset(),
) -> str:
    """`federation.yaml:12: local.steps: message`. An overridden key is marked as such and has no line."""
    key = f"{dotted(place, data)}: " if place else ""
    if any(place[: len(path)] == path for path in overridden):
        return f"{file}: {key}(overridden on the command line) {message}"
    return f"{file}:{line_of(place, lines)}: {key}{message}"


def line_of(place: Key, lines: Mapping[Key, int]) -> int:
    """The line of the key, or of the nearest section around it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def dotted(place: Key, data: Any) -> str:
    """`sites[wikipedia].streams[web].source`: list entries by name, or by number from 1."""
    text, here = "", data
    for part in place:
        if isinstance(part, int):
            here = here[part] if isinstance(here, list) and part < len(here) else None
            name = here.get("name") if isinstance(here, dict) else None
            shown = isinstance(name, str) and 0 < len(name) < 64 and not has_secret(name)
            text += f"[{name if shown else part + 1}]"
        else:
            here = here.get(part) if isinstance(here, dict) else None
            text += f".{part}" if text else part
    return text


def _place(details: ErrorDetails) -> Key:
    place = (*details["loc"], *details.get("ctx", {}).get("at", ()))
    half_a_pair = details["type"] == "missing" and isinstance(place[-1], int)
    return place[:-1] if half_a_pair else place


def _explained(missing: Key, found: list[Finding]) -> bool:
    """Whether another problem explains why a key is missing: a misspelling, or an unknown preset or recipe."""
    for place, details, beside in found:
        if place[-1:] == ("preset",) and place[:-1] in ((), missing[:-1]):
            return True
        if place == ("recipe",) and missing[:1] in (("local",), ("rounds",)):
            return True
        if details["type"] == "extra_forbidden" and (*place[:-1], nearest_key(names(place), beside)) == missing:
            return True
    return False
