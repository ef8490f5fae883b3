"""Bounds for values in manifests that others write: whole numbers, measurements, texts, lists."""

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

LARGEST_COUNT = 2**53  # up to here a float represents every whole number
LARGEST_NUMBER = 1e45  # above every norm of float32 numbers that can occur; its square is still finite
NAME_LIMIT = 200  # characters of a name, a version or a hash
TEXT_LIMIT = 4000  # characters of a path or a sentence
LIST_LIMIT = 1000  # notes, spans or checks
POOL_LIMIT = 100_000  # rows of an attention: as many members as a round can have
SHAPE_LIMIT = 16  # dimensions
DEPTH_LIMIT = 8  # nested lists and mappings

Item = TypeVar("Item")

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=NAME_LIMIT)]
Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
Listed = Annotated[list[Item], Field(max_length=LIST_LIMIT)]


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    """A mapping of any JSON within the bounds. Raises ValueError."""
    todo = [(values, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, dict | list):
            if depth > DEPTH_LIMIT or len(value) > LIST_LIMIT:
                raise ValueError(f"it is deeper than {DEPTH_LIMIT} levels, or has more than {LIST_LIMIT} entries")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            todo += [(item, depth + 1) for item in inner]
        elif isinstance(value, str) and len(value) > TEXT_LIMIT:
            raise ValueError(f"it contains a text of more than {TEXT_LIMIT} characters")
        elif isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise ValueError("it contains a whole number beyond 2^53")
        elif isinstance(value, float) and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
            raise ValueError(f"it contains a number beyond {LARGEST_NUMBER:g}")
    return values


Bounded = Annotated[dict[str, Any], AfterValidator(_bounded)]
