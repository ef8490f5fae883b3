"""The timeline of a round: the spans of all sites, on the coordinator's clock.

A site reports the starts of its steps by its own clock, which may be wrong. Their durations are right in any case.
The coordinator knows by its own clock when the round was opened and when the site's part ended. So a site's spans
are shifted together by the smallest offset that puts them between the two, and the round's manifest names the
offset. If the spans already fit, they are not shifted.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from photon_core.evidence.events import Event, Kind, Log
from schemas.manifests import Span, UpdateManifest

WHOLE = "round"  # phase of the coordinator's wait for everything that a remote site does before aggregation
LIMIT = 100  # spans of a site in a round
LONGEST = 1e9  # seconds
PHASE_LIMIT = 40  # characters


@contextmanager
def phase(log: Log, name: str) -> Iterator["Stopwatch"]:
    """The block is a phase of the log's member, failed or not. The phase starts with the block, or when the
    stopwatch that it yields is restarted."""
    stopwatch = Stopwatch()
    try:
        yield stopwatch
    finally:
        append_spans(log, Span(phase=name, start=stopwatch.unix, seconds=stopwatch.elapsed()))


def append_spans(log: Log, *spans: Span) -> None:
    for span in spans:
        log.append(Kind.PHASE_ENDED, **span.model_dump())


def spans_of(events: Iterable[Event]) -> dict[str, list[Span]]:
    """Site -> the phases that have ended, also the failed ones."""
    spans: dict[str, list[Span]] = {}
    for event in events:
        if event.kind is Kind.PHASE_ENDED:
            spans.setdefault(event.member, []).append(Span.model_validate(event.data))
    return spans


class Stopwatch:
    """The start of a span, and the time since then."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start the span now. The time before it was a wait for a free core."""
        self.unix, self._clock = time.time(), time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._clock

    def split(self, first: str, last: str, seconds: float) -> list[Span]:
        """Two spans from the start until now, of which the last took `seconds`; one span if `seconds` is 0."""
        whole = self.elapsed()
        rest = whole - min(seconds, whole)
        head = Span(phase=first, start=self.unix, seconds=rest)
        tail = Span(phase=last, start=self.unix + rest, seconds=whole - rest)
        return [head, tail] if seconds else [head]


def timeline(
    updates: Mapping[str, UpdateManifest], own: Mapping[str, Sequence[Span]], opened: float
) -> tuple[dict[str, list[Span]], dict[str, float]]:
    """Every site's spans of a round on the coordinator's clock.

    Args:
        updates: committed updates by site.
        own: spans that the coordinator's process measured, by site; of a remote site, its whole part.
        opened: Unix time at which the round was opened; 0 if unknown.

    Returns:
        The spans by site, and the offset in seconds of each site whose spans were shifted.
    """
    spans: dict[str, list[Span]] = {}
    clocks: dict[str, float] = {}
    if not opened:
        return spans, clocks
    for site, seen in own.items():
        whole = [span for span in seen if span.phase == WHOLE]
        if whole and site in updates:
            begin, end = whole[0].start, max(span.start + span.seconds for span in whole)
            placed, moved = place(updates[site].spans, begin, end)
            if placed:  # none if the site did its part before this opening of the round, or reports no spans
                spans[site] = [_moved(span, begin - opened) for span in placed]
                spans[site] += [_moved(span, -opened) for span in seen if span.phase != WHOLE]
                if moved:
                    clocks[site] = moved
                continue
        spans[site] = [_moved(span, -opened) for span in seen]
    return spans, clocks


def _moved(span: Span, seconds: float) -> Span:
    return Span(phase=span.phase, start=round(span.start + seconds, 3), seconds=round(span.seconds, 3))


def place(spans: Sequence[Span], begin: float, end: float) -> tuple[list[Span], float]:
    """Spans as seconds after `begin`, shifted together if the site's clock is off.

    Args:
        spans: spans by the site's clock, Unix time. Impossible ones (not finite, negative, too many, with an
            invalid phase name) are dropped: a wrong timeline must not cost the site its update.
        begin, end: limits of the spans, Unix time by the coordinator's clock.

    Returns:
        The spans in the order of their starts, none if they do not fit between the limits; and their offset in
        seconds, 0 if they were not shifted.
    """
    good = sorted((span for span in spans[:LIMIT] if _possible(span)), key=lambda span: span.start)
    if not good:
        return [], 0.0
    first, last = good[0].start, max(span.start + span.seconds for span in good)
    if last - first > end - begin:
        return [], 0.0
    moved = round(min(0.0, end - last) or max(0.0, begin - first), 3)
    return [_moved(span, moved - begin) for span in good], moved


def _possible(span: Span) -> bool:
    named = len(span.phase) <= PHASE_LIMIT and span.phase.isprintable()
    return named and math.isfinite(span.start) and 0 <= span.seconds < LONGEST and abs(span.start) < 1e11
