"""docs/federation.md, the reference of the federation file, which `python -m schemas.docs.json_schema` writes."""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.federation import Federation
from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS

PATH = Path(__file__).parents[2] / "docs" / "federation.md"
HEAD = """\
# The federation file

All settings of a federation are in one YAML file. The file is checked as a whole before any work. Each problem is
reported with line, key, value and what to write instead. Unknown keys are refused. Relative paths start at the
file's own folder. Durations are seconds, or `90s`, `30m`, `2h`, `1d`.

The defaults are those of `recipe: null`. A preset or a recipe overrides them. A file that names neither
[has a recipe, too](recipes.md#recipe-selection).

This page is generated from the schema (`python -m schemas.docs.json_schema`). [concepts.md](concepts.md) defines
the terms, [recipes.md](recipes.md) shows parts of files, and `examples/federation.yaml` is a complete file. In an
editor with a YAML language server, `# yaml-language-server: $schema=schemas/federation.schema.json` checks the
file while you write.

"""
KINDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    dict: "mapping",
    Any: "anything",
}
REQUIRED = "**required**"
BROUGHT = {"model", "rounds", "local", "local.steps"} | {
    f"{section}.{key}"
    for section, values in (("model", MODEL_PRESETS["75M"]), *FEDERATED_PRESETS["75M"].items())
    for key in values
}
LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def text() -> str:
    """The whole page."""
    parts = [HEAD, *_section("federation.yaml", Federation, {})]
    return "".join(parts).rstrip("\n") + "\n"


def _section(place: str, section: type[BaseModel], seen: dict[type[BaseModel], str]) -> Iterator[str]:
    """The section's table, then the sections below it. A section that was already written is linked."""
    seen[section] = place
    yield f"## `{place}`\n\n"
    about = (section.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    if about:
        yield f"{about}\n\n"
    yield "| key | value | default | |\n|---|---|---|---|\n"
    below = []
    for name, field in section.model_fields.items():
        inner = _inner(field.annotation)
        key = f"{name}[]" if inner and _is_list(field.annotation) else name
        path = key if place == "federation.yaml" else f"{place}.{key}"
        if inner is not None:
            below.append((path, inner))
        required = REQUIRED + (" unless a preset or recipe sets it" if path in BROUGHT else "")
        yield _row(name, field, inner, seen.get(inner, path) if inner else None, required)
    yield "\n"
    for path, inner in below:
        if inner not in seen:
            yield from _section(path, inner, seen)


def _row(name: str, field: FieldInfo, inner: type[BaseModel] | None, path: str | None, required: str) -> str:
    described = _escape(field.description or "")
    if inner is not None:
        default = required if field.is_required() else "" if not _plain(field) else "`[]`"
        kind = (
            f"{'list of sections' if _is_list(field.annotation) else 'section'} [`{path}`](#{_anchor(path or '')})"
        )
        return f"| `{name}` | {kind} | {default} | {described} |\n"
    default = required if field.is_required() else _default(field)
    return f"| `{name}` | {_escape(_kind(field))} | {default} | {described} |\n"


def _plain(field: FieldInfo) -> bool:
    return bool(field.default_factory is list)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


def _kind(field: FieldInfo) -> str:
    """Values that a key accepts, in words, with their limits."""
    kind = _words(field.annotation)
    limits = [*field.metadata, *_inner_limits(field.annotation)]
    found = [
        words.format(_number(getattr(limit, name)))
        for limit in limits
        for name, words in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join(dict.fromkeys([kind, *found]))


def _words(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"{len(args)} numbers"
    if origin is list:
        return f"list of {_words(args[0])}"
    if origin is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _words(annotation.__origin__)
    if args:
        return " or ".join(dict.fromkeys(_words(arg) for arg in args if arg is not NoneType))
    return KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _inner_limits(annotation: Any) -> Iterator[Any]:
    """Limits inside the type, as in Fraction | None."""
    for arg in (annotation, *get_args(annotation)):
        for item in getattr(arg, "__metadata__", ()):
            yield item
            yield from getattr(item, "metadata", ())


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The section of a key, directly or as the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _inner(arg))), None)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_is_list(arg) for arg in get_args(annotation))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escape(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _anchor(place: str) -> str:
    """The anchor of a heading: lower case, with letters, digits, _ and - only."""
    return "".join(c for c in place.lower() if c.isalnum() or c in "_-")
