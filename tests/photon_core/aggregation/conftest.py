"""The tree that is played without training, for every test of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_core.run.run import forget_runs
from tests.conftest import merge
from tests.played import MODEL, Play, Played
from tests.worlds import write_world


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A tree of two regions with two sites each; keywords as for `write_world`."""
    count = iter(range(9))

    def make(**more: Any) -> Played:
        sections = {key: merge({"model": MODEL}, more.pop(key, {})) for key in ("root", "region")}
        return Played(write_world(tmp_path / f"world-{next(count)}", **sections, **more))

    yield make
    forget_runs()
