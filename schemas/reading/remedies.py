"""A message for one of Pydantic's findings: what is wrong with the value, what to write instead."""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from schemas.federation import Federation
from schemas.presets import OURS
from schemas.reading.yaml_lines import Key
from schemas.secrets import redacted

SHOWN = 60  # characters of a wrong value that a message repeats
LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "of at most"),
}
NOTHING = ("none", "no", "off", "nothing", "false")  # common spellings of null
LIKE, SURE = 0.6, 0.75  # similarity of two words from which one may be, or is, a misspelling of the other
SECRET = re.compile(r"secret|password|token|access_key|credential|key_id", re.IGNORECASE)
Names = tuple[str, ...]


def remedy(place: Names, details: ErrorDetails, missing: Sequence[str] = ()) -> str:
    """The message for one finding at a key.

    Args:
        place: path of the key, without the numbers of list entries.
        details: finding of Pydantic.
        missing: required keys that are missing in its section.
    """
    kind, value, field = details["type"], details["input"], _fields().get(place)
    if kind == "extra_forbidden":
        return _unknown(place, missing)
    if kind == "missing":
        return _missing(field) + (f", or recipe: {OURS}" if place == ("local", "steps") else "")
    if value is None:
        return _empty(field)
    for start, words in REMEDIES.items():
        if kind.startswith(start):
            return words(details, field)
    message = str(details.get("ctx", {}).get("error", details["msg"]))
    # 'wrong' (schemas/sections/values.py) has a complete message, which may omit the value
    return message if kind == "wrong" or isinstance(value, dict | list) else f"{shown(value)} {message}"


def names(place: Key) -> Names:
    """A path without the numbers of list entries."""
    return tuple(part for part in place if isinstance(part, str))


def nearest_key(unknown: Names, missing: Sequence[str]) -> str | None:
    """The key of the same section that an unknown key probably means; if that is unclear, a missing key."""
    here, word = [path[-1] for path in _fields() if path[:-1] == unknown[:-1]], unknown[-1].lower()
    if missing and not get_close_matches(word, here, cutoff=SURE) and get_close_matches(word, here, cutoff=LIKE):
        return get_close_matches(word, missing, n=1, cutoff=0)[0]
    return next(iter(get_close_matches(word, here, n=1, cutoff=LIKE)), None)


def shown(value: Any) -> str:
    """A value as in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(redacted({"options": value})["options"])  # as a free-form section, whose names are checked, too
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


@cache
def _fields() -> dict[Names, FieldInfo]:
    """Every key of the file."""
    return dict(_walk(Federation, ()))


def _walk(section: type[BaseModel], path: Names) -> Iterator[tuple[Names, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield (*path, name), field
        below = _section(field.annotation)
        if below:
            yield from _walk(below, (*path, name))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section of a field, directly or as the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section(arg))), None)


def _example(field: FieldInfo | None) -> str:
    return str(field.examples[0]) if field is not None and field.examples else ""


def _such_as(field: FieldInfo | None, otherwise: str = "") -> str:
    example = _example(field) or otherwise
    return f" such as {example}" if example else ""


def _keys(field: FieldInfo | None) -> str:
    section = _section(field.annotation) if field is not None else None
    return f": {', '.join(section.model_fields)}" if section else ""


def _unknown(place: Names, missing: Sequence[str]) -> str:
    if place[-2:-1] == ("storage",) and SECRET.search(place[-1]):
        others = ", profile or block" if len(place) == 2 else " or profile"
        return (
            "unknown key; a federation file contains no credentials: remove it, they come from the environment "
            f"(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY){others}"
        )
    near = nearest_key(place, missing)
    if near:
        return f"unknown key; did you mean '{near}'?"
    elsewhere = [".".join(path) for path in _fields() if path[-1] == place[-1]]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere[:3])}?"
    here = [path[-1] for path in _fields() if path[:-1] == place[:-1]]
    return f"unknown key; the keys here are {', '.join(here)}"


def _missing(field: FieldInfo | None) -> str:
    if field is not None and get_origin(field.annotation) is tuple:
        return f"takes two numbers; write {_example(field)}"
    section = _section(field.annotation) if field is not None else None
    if section and not _example(field):
        needed = [name for name, below in section.model_fields.items() if below.is_required()]
        return f"missing; write the section with at least {', '.join(needed)}"
    about = f" ({field.description})" if field is not None and field.description else ""
    return f"missing{about}; write a value{_such_as(field)}"


def _empty(field: FieldInfo | None) -> str:
    keys = "" if _example(field) else _keys(field)
    wanted = f"its keys below it, indented{keys}" if keys else f"a value{_such_as(field)}"
    return f"is empty; write {wanted}{'' if field is None or field.is_required() else ', or drop the key'}"


def _not_a_section(details: ErrorDetails, field: FieldInfo | None) -> str:
    return f"{shown(details['input'])} is not a section; write its keys below it, indented{_keys(field)}"


def _not_a_list(details: ErrorDetails, field: FieldInfo | None) -> str:
    instead = _example(field) or "each entry on its own line, after - "
    return f"{shown(details['input'])} is not a list; write {instead}"


def _count_of_entries(details: ErrorDetails, field: FieldInfo | None) -> str:
    return f"has {details['ctx']['actual_length']} entries; write {_example(field)}"


def _not_text(details: ErrorDetails, field: FieldInfo | None) -> str:
    value = details["input"]
    instead = f"a value{_such_as(field)}" if isinstance(value, dict | list) else f"it in quotes: '{shown(value)}'"
    return f"{shown(value)} is not text; write {instead}"


def _not_whole(details: ErrorDetails, field: FieldInfo | None) -> str:
    return f"{shown(details['input'])} is not a whole number; write a number{_such_as(field, '10')}"


def _not_a_number(details: ErrorDetails, field: FieldInfo | None) -> str:
    return f"{shown(details['input'])} is not a number; write a number{_such_as(field, '0.1')}"


def _out_of_range(details: ErrorDetails, _field: FieldInfo | None) -> str:
    limit, words = LIMITS[details["type"]]
    edge = float(details["ctx"][limit])
    edge = int(edge) if edge.is_integer() else edge
    return f"{shown(details['input'])} is out of range; write a number {words} {edge}"


def _choice(details: ErrorDetails, field: FieldInfo | None) -> str:
    value = details["input"]
    choices = list(_choices(field.annotation)) if field is not None else []
    near = get_close_matches(str(value).lower(), [c.lower() for c in choices], n=1, cutoff=LIKE)
    meant = next((c for c in choices if near and c.lower() == near[0]), None)
    none = field is not None and NoneType in get_args(field.annotation) and str(value).lower() in NOTHING
    hint = f"did you mean '{meant}'?" if meant else "write one of them" + (", or null for none" if none else "")
    return f"{shown(value)} is not one of {', '.join(choices)}; {hint}"


def _choices(annotation: Any) -> Iterator[str]:
    for arg in get_args(annotation):
        if isinstance(arg, str):
            yield arg
        else:
            yield from _choices(arg)


REMEDIES: dict[str, Callable[[ErrorDetails, FieldInfo | None], str]] = {  # by the start of Pydantic's kind
    "model_type": _not_a_section,
    "model_attributes_type": _not_a_section,
    "dict_type": _not_a_section,
    "list_type": _not_a_list,
    "tuple_type": _not_a_list,
    "too_long": _count_of_entries,
    "too_short": _count_of_entries,
    "literal_error": _choice,
    "string_type": _not_text,
    "int_": _not_whole,
    "float_": _not_a_number,
    "finite_number": _not_a_number,
    **dict.fromkeys(LIMITS, _out_of_range),
}
