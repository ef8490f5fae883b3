"""Everything that a Prefect server has to say, which it says page by page."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAGE = 200  # objects that a server returns at most at once


def pages(read: Callable[[int], list[T]]) -> list[T]:
    """All that `read(offset)` returns, PAGE objects at a time."""
    found: list[T] = []
    while page := read(len(found)):
        found += page
        if len(page) < PAGE:
            break
    return found
