"""What each site did when: gathered where it happens, and put on the coordinator's clock for the round's manifest.

A site says when its steps began by its own clock, which may be wrong; how long they took is right whatever the
clock says. The coordinator knows by its own clock when the round was opened and when the site's part ended. So a
site's spans are moved together, by the least amount that puts them between the two, and the round's manifest says
by how much: a clock that is right, or off by less than the slack there is, moves nothing.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from photon_core.evidence.events import Event, Kind, Log
from schemas.manifests import Span, UpdateManifest

WHOLE = "round"  # the phase of the coordinator's own wait for all that a site does elsewhere before aggregation
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
    """Site -> the phases that ended, failed ones too."""
    found: dict[str, list[Span]] = {}
    for event in events:
        if event.kind is Kind.PHASE_ENDED:
            found.setdefault(event.member, []).append(Span.model_validate(event.data))
    return found


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
        """Two spans from the beginning until now, of which the last took so many seconds; one if it took none."""
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
        updates: what the sites have committed.
        own: what the coordinator's process saw itself, by site; of a site that works elsewhere, the whole of it.
        opened: when the round began, Unix time; 0 if that is not known.

    Returns:
        The spans by site, and the seconds that a site's own had to be moved by, where they had to.
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
            if placed:  # none: the site did its part before this opening of the round, or says nothing
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
    """Spans as seconds after `begin`, moved together where the site's clock is off.

    Args:
        spans: by the site's clock, Unix time. What cannot be (not finite, negative, too many, a phase that is no
            name) is dropped: a wrong timeline costs nobody the round.
        begin, end: Unix time by the coordinator's clock: none can have begun before the one, or ended after the
            other.

    Returns:
        The spans in the order of their starts, none if they are longer than there was time; and the seconds that
        they were moved by, 0 where they fit.
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
