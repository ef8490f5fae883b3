"""Progress where there is no terminal: whole lines, counts, and the time left."""

import time

import pytest

from photon_cli import progress
from photon_cli.progress import Lines


def test_counts_say_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lines = Lines()
    for done in (0, 10, 30):
        lines.activity("berlin", "train", done, 60)
        clock[0] += 2 * progress.PLAIN_SECONDS
    lines.finish("berlin")
    lines.activity("berlin", "train", 5, 60)
    assert capsys.readouterr().out.splitlines() == [
        "berlin: train",
        "berlin: train (10/60)",
        "berlin: train (30/60, 30 s left)",
        "berlin: train (5/60)",
    ]
