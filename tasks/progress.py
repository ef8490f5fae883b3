"""What is going on, for whoever watches from the same process: the command line's progress display."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.server_errors import told

State = Literal["started", "running", "finished", "failed"]


@dataclass(frozen=True)
class Event:
    """One thing that happened. `site` is empty for the steps of the whole round."""

    t: int
    step: str
    state: State
    site: str = ""
    data: dict[str, Any] = field(default_factory=dict)


_listeners: list[Callable[[Event], None]] = []


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call `listener` with every event of this process, from any thread, until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def emit(t: int, step: str, state: State, site: str = "", /, **data: Any) -> None:
    for listener in list(_listeners):
        listener(Event(t, step, state, site, data))


@contextmanager
def step(t: int, name: str, site: str = "") -> Iterator[dict[str, Any]]:
    """Emit started, then finished (with what the block put in the dict) or failed (with the error)."""
    data: dict[str, Any] = {}
    emit(t, name, "started", site)
    try:
        yield data
    except BaseException as error:
        emit(t, name, "failed", site, error=f"{type(error).__name__}: {told(error)}")
        raise
    emit(t, name, "finished", site, **data)
