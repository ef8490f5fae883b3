"""Pydantic's findings as lines for people: file, line, key, what is wrong, what to write instead."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.federation import Federation
from schemas.yaml_lines import Key

SHOWN = 60  # characters of a wrong value that a message repeats


def describe(
    error: ValidationError,
    data: Any,
    file: str,
    lines: Mapping[Key, int],
    overridden: frozenset[Key] = frozenset(),
) -> list[str]:
    """One line for each problem, in the order of the file.

    Args:
        error: what Federation.model_validate raised on data.
        data: the mapping that was validated, as written (without preset values).
        file: name of the file, for the messages.
        lines: line of every key (schemas/yaml_lines.py).
        overridden: keys whose values came from the caller, not from the file.
    """
    found = [(_place(details), details) for details in error.errors(include_url=False)]
    # a preset that does not exist explains every key that it would have brought
    presets = {place[:-1] for place, details in found if place[-1:] == ("preset",)}
    found = [
        (place, details)
        for place, details in found
        if not (details["type"] == "missing" and (() in presets or place[:-1] in presets))
    ]
    found.sort(key=lambda item: line_of(item[0], lines))
    return [
        locate(place, _message(place, details), data, file, lines, overridden) for place, details in found
    ]


def locate(
    place: Key,
    message: str,
    data: Any,
    file: str,
    lines: Mapping[Key, int],
    overridden: frozenset[Key] = frozenset(),
) -> str:
    """`federation.yaml:12: local.steps: message`; an overridden key has no line and says so."""
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
            text += f"[{name if isinstance(name, str) and 0 < len(name) < 64 else part + 1}]"
        else:
            here = here.get(part) if isinstance(here, dict) else None
            text += f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value as it stands in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of the file, as (path without list numbers, field)."""
    for name, field in model.model_fields.items():
        yield (*path, name), field
        section = section_of(field.annotation)
        if section:
            yield from fields(section, (*path, name))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, directly or as the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_of(arg))), None)


def _place(details: ErrorDetails) -> Key:
    return (*details["loc"], *details.get("ctx", {}).get("at", ()))


def _names(place: Key) -> tuple[str, ...]:
    return tuple(part for part in place if isinstance(part, str))


def _message(place: Key, details: ErrorDetails) -> str:
    kind, value, ctx = details["type"], details["input"], details.get("ctx", {})
    table = dict(fields(Federation))
    field = table.get(_names(place))
    example = field.examples[0] if field is not None and field.examples else None
    such_as = f" such as {example}" if example is not None else ""
    if kind == "extra_forbidden":
        return _unknown(place, table)
    if kind == "missing":
        return _missing(place, field, such_as)
    if value is None:
        return f"is empty; write a value{such_as}, or leave the key out if it has a default"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        section = section_of(field.annotation) if field is not None else None
        keys = f": {', '.join(section.model_fields)}" if section else ""
        return f"{shown(value)} is not a section; write its keys below it, indented{keys}"
    if kind in ("list_type", "tuple_type"):
        return f"{shown(value)} is not a list; write {example or 'each entry on its own line after - '}"
    if kind == "literal_error":
        return _choice(value, field)
    if kind == "string_type":
        return f"{shown(value)} is not text; write it in quotes: '{value}'"
    if kind.startswith("int_"):
        return f"{shown(value)} is not a whole number; write a number{such_as or ' such as 10'}"
    if kind.startswith(("float_", "finite_number")):
        return f"{shown(value)} is not a number; write a number{such_as or ' such as 0.1'}"
    if kind in ("too_long", "too_short"):
        wanted = ctx.get("min_length", ctx.get("max_length"))
        return (
            f"{shown(value)} has {ctx.get('actual_length')} entries; write {example or f'at least {wanted}'}"
        )
    if kind in LIMITS:
        limit, words = LIMITS[kind]
        return f"{shown(value)} is out of range; write a number {words} {ctx[limit]}"
    message = str(ctx.get("error", details["msg"]))
    # 'wrong' (schemas/federation.py) words its whole message, and may hide the value
    return message if kind == "wrong" or isinstance(value, dict | list) else f"{shown(value)}: {message}"


LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "of at most"),
}


def _unknown(place: Key, table: Mapping[tuple[str, ...], Any]) -> str:
    *above, key = _names(place)
    here = [path[-1] for path in table if path[:-1] == tuple(above)]
    near = get_close_matches(key.lower(), here, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean '{near[0]}'?"
    elsewhere = [".".join(path) for path in table if path[-1] == key]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere[:3])}?"
    return f"unknown key; the keys here are {', '.join(here)}"


def _missing(place: Key, field: Any, such_as: str) -> str:
    if isinstance(place[-1], int):  # one of a pair
        return "takes two numbers; write [0.9, 0.95]"
    section = section_of(field.annotation) if field is not None else None
    if section and not such_as:
        needed = [name for name, below in section.model_fields.items() if below.is_required()]
        return f"missing; write the section with at least {', '.join(needed)}"
    about = f" ({field.description})" if field is not None and field.description else ""
    return f"missing{about}; write a value{such_as}"


def _choice(value: Any, field: Any) -> str:
    choices = [c for c in _choices(field.annotation if field is not None else None) if isinstance(c, str)]
    near = get_close_matches(str(value).lower(), [c.lower() for c in choices], n=1, cutoff=0.5)
    hint = next(
        (f"; did you mean '{c}'?" for c in choices if near and c.lower() == near[0]), "; write one of them"
    )
    return f"{shown(value)} is not one of {', '.join(choices)}{hint}"


def _choices(annotation: Any) -> Iterator[Any]:
    for arg in get_args(annotation):
        if get_args(arg):
            yield from _choices(arg)
        else:
            yield arg
