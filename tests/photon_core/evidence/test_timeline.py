"""The timeline of a round: what a site says by its own clock, on the coordinator's."""

import pytest

from photon_core.evidence.events import Log
from photon_core.evidence.timeline import WHOLE, phase, place, spans_of, timeline
from schemas.manifests import Span, UpdateManifest


def span(phase: str, start: float, seconds: float) -> Span:
    return Span(phase=phase, start=start, seconds=seconds)


def update(*spans: Span) -> UpdateManifest:
    return UpdateManifest(
        run="run", round=1, site="a", attempt=1, base_sha256="", codec="float32", files=[], tokens=1, steps=1,
        metrics={}, data_sha256="", spans=list(spans), versions={}, previous_sha256="",
    )  # fmt: skip


WORK = (span("train", 1000.0, 20.0), span("upload", 1020.0, 5.0))


@pytest.mark.parametrize(
    ("begin", "end", "first", "moved"),
    [
        (990.0, 1030.0, 10.0, 0.0),  # within: the site's clock is believed
        (990.0, 1020.0, 5.0, -5.0),  # it would have ended after it was seen to have
        (1003.0, 1040.0, 0.0, 3.0),  # it would have begun before it was asked to
        (5000.0, 5100.0, 0.0, 4000.0),  # its clock is more than an hour late
    ],
)
def test_spans_are_moved_by_the_least_that_fits(begin: float, end: float, first: float, moved: float):
    placed, by = place(WORK, begin, end)
    assert by == moved
    assert [(found.phase, found.start, found.seconds) for found in placed] == [
        ("train", first, 20.0),
        ("upload", first + 20.0, 5.0),
    ]


def test_work_longer_than_there_was_time_is_of_an_earlier_opening():
    assert place(WORK, 1000.0, 1010.0) == ([], 0.0)


def test_impossible_spans_cost_nothing():
    odd = [span("train", 1.0, -1.0), span("x", 1.0, 1e45), span("x", 1e45, 1.0), span("x", -1e45, 1.0)]
    odd += [span("x" * 4_000, 1.0, 1.0), span("\x1b[2J", 1.0, 1.0)]
    assert place(odd, 0.0, 100.0) == ([], 0.0)
    many = [span("train", float(i), 0.5) for i in range(10_000)]
    assert len(place(many, 0.0, 20_000.0)[0]) == 100


def test_a_site_elsewhere_is_seen_through_its_own_spans():
    seen = [span(WHOLE, 5000.0, 40.0), span("evaluate", 5050.0, 2.0)]
    spans, clocks = timeline({"a": update(*WORK)}, {"a": seen}, opened=4990.0)
    assert [(found.phase, found.start) for found in spans["a"]] == [
        ("train", 10.0), ("upload", 30.0), ("evaluate", 60.0),
    ]  # fmt: skip
    assert clocks == {"a": 4000.0}


def test_a_site_here_and_one_without_an_update_are_seen_directly():
    spans, clocks = timeline({}, {"a": [span(WHOLE, 50.0, 9.0)], "b": [span("validate", 51.0, 1.0)]}, opened=50.0)
    assert spans == {"a": [span(WHOLE, 0.0, 9.0)], "b": [span("validate", 1.0, 1.0)]}
    assert clocks == {}


def test_a_span_begins_when_its_turn_comes_and_is_kept_when_it_fails():
    log = Log("run").at(1, "a")
    with pytest.raises(RuntimeError), phase(log, "train") as stopwatch:
        before = stopwatch.unix
        stopwatch.restart()
        raise RuntimeError
    [found] = spans_of(log.events())["a"]
    assert found.phase == "train" and found.start >= before
