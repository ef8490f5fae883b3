"""Types of values in a federation file: names, places, durations, shares."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BROKEN_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|https?|file|local|memory):/?(?![/:])", re.IGNORECASE)


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """An error with a complete message, at a key below the one that is being validated."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at})


def only_for(section: BaseModel, key: str, given: str, takers: Sequence[str], kind: str = "") -> None:
    """Refuse a key with a non-default value if the choice that it belongs to was not made.

    Args:
        section: validated section.
        key: key of the section, with a default.
        given: choice in the file.
        takers: choices that use the key.
        kind: text before the choices in the message, if their names alone are unclear.
    """
    if given not in takers and getattr(section, key) != type(section).model_fields[key].default:
        raise wrong(f"is for {kind}{', '.join(takers)}, not for {given}; drop it", key)


def is_s3(place: str) -> bool:
    return place.startswith(("s3://", "s3a://"))


def _name(value: Any) -> Any:
    if isinstance(value, str) and (not NAME.fullmatch(value) or ".." in value):
        raise ValueError(
            "is not a name; write at most 63 letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "without '..'" + _better(value)
        )
    return value


def _better(value: str) -> str:
    near = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", value)).strip("._-")[:63].rstrip("._-")
    return f", such as '{near}'" if NAME.fullmatch(near) else ""


def duration(value: Any) -> Any:
    """Seconds of a text such as 30m; other values unchanged. Raises ValueError."""
    if isinstance(value, str):
        match = DURATION.fullmatch(value.strip())
        if not match:
            raise ValueError(
                "is not a duration; write a number of seconds, or a number with a unit: 90s, 30m, 2h, 1d"
            )
        return float(match[1]) * SECONDS[match[2]]
    return value


def _micro_batch(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not number and value not in ("auto", None):
        raise ValueError("is not a micro-batch; write auto, or a number of sequences of at least 1")
    return value


def _options(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            "contains NaN, infinity or another value that is not JSON; write texts, numbers, true, false, null, "
            "or lists or mappings of them"
        ) from None
    return value


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is blank; write a value")
    if not value.isprintable():
        raise ValueError("contains a control character or line break; write plain text on one line")
    return value


def _place(value: str) -> str:
    if broken := BROKEN_URL.match(value):
        root = "/" if broken[0].endswith("/") and broken[1].lower() in ("file", "local") else ""
        raise ValueError(f"is not a URL; write {broken[1].lower()}://{root}{value[broken.end() :]}")
    scheme, separator, rest = value.partition("://")
    if separator and scheme != scheme.lower():
        raise ValueError(f"has capital letters in its scheme; write {scheme.lower()}://{rest}")
    return _text(value)


Text = Annotated[str, AfterValidator(_text)]
Place = Annotated[str, AfterValidator(_place)]
Options = Annotated[dict[str, Any], AfterValidator(_options)]
Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema({"type": "string", "pattern": f"^(?!.*\\.\\.){NAME.pattern}$"}),
]
Seconds = Annotated[
    float,
    BeforeValidator(duration),
    Field(gt=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{DURATION.pattern}$"},
            ]
        }
    ),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
MicroBatch = Annotated[
    int | Literal["auto"] | None,
    BeforeValidator(_micro_batch),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}, {"type": "null"}]}),
]


def unique(kind: str, names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse names that repeat, or differ only in case: they are folders, and some disks ignore case.

    Args:
        kind: noun for the entries, for the message.
        names: names of a list's entries, in order.
        others: names that are already in use.
    """
    seen = {name.lower(): name for name in others}
    for index, name in enumerate(names):
        other = seen.setdefault(name.lower(), name)
        if name in (*others, *names[:index]) or other != name:
            what = "occurs twice" if other == name else f"differs from '{other}' only in case"
            raise wrong(f"the {kind} '{name}' {what}; give every {kind} a unique name", index, "name")
