"""All results of a Prefect server's query, which the server returns page by page."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAGE = 200  # most objects that a server returns per request


def pages(read: Callable[[int], list[T]]) -> list[T]:
    """All objects that `read(offset)` returns, PAGE at a time."""
    found: list[T] = []
    while page := read(len(found)):
        found += page
        if len(page) < PAGE:
            break
    return found
