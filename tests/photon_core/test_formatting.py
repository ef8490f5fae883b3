"""Numbers as people read them, at the borders between their units."""

import pytest

from photon_core.formatting import amount, count, duration


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.9, "1 k"), (1_411_392, "1.41 M"), (2e9, "2 B"), (1e16, "10 quadrillion")],
)
def test_counts(number: float, text: str):
    assert count(number) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1000, "1 kB"), (5_645_568, "5.65 MB"), (999_999, "1 MB"), (3.2e15, "3.2 PB")]
)
def test_bytes(size: float, text: str):
    assert amount(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (0.25, "250 ms"), (4.2, "4.2 s"), (9.97, "10 s"), (59.7, "1 min 0 s"),
     (200, "3 min 20 s"), (960, "16 min"), (18420, "5 h 7 min"), (535_680, "6.2 days")],
)  # fmt: skip
def test_seconds(seconds: float | None, text: str):
    assert duration(seconds) == text
