"""Peak memory of a pass over the updates, in a separate process: the settings' bound, however many sites."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.store.store import Store
from schemas.sections.server import Server

PASS = """
import sys
import torch
from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.run.run import Run
from photon_core.store.store import Store
from schemas.sections.server import Server

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10

run, start = Run(Store(sys.argv[1]), "run"), peak()
updates = {site: run.update(1, site, 1) for site in run.store.ls("run/rounds/000001/sites")}
limits = Limits(memory_bytes=64 << 20, shard_bytes=4 << 20)
result = aggregate(run, 1, updates, Server(optimizer="nesterov", momentum=0.9), limits=limits)
size = sum(entry.bytes for update in updates.values() for entry in update.files)
print(len(updates), size >> 20, peak() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_sites(tmp_path: Path, make_run: Any) -> None:
    theta = {"w": np.ones((2000, 4000), np.float32), "b": np.zeros(3, np.float32)}
    changed = {name: value + np.float32(0.25) for name, value in theta.items()}
    run, updates = make_run(Store(str(tmp_path)), theta, {"s00": (changed, 100)}, 8 << 20)
    first = updates["s00"]
    grown = []
    for sites in (4, 32):
        for number in range(1, sites):
            site = f"s{number:02d}"
            folder = tmp_path / run.site_dir(1, site, 1)
            if not folder.exists():
                folder.mkdir(parents=True)
                for entry in first.files:
                    os.link(tmp_path / run.site_dir(1, "s00", 1) / entry.path, folder / entry.path)
                run.commit_update(first.model_copy(update={"site": site}))
        done = subprocess.run(
            [sys.executable, "-c", PASS, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
        )
        found, mib, peak = map(int, done.stdout.split())
        assert found == sites and mib // sites == 30
        grown.append(peak)
    # 64 MiB that are prefetched, results and files being written, threads; not 120 and 960 MiB of updates
    assert max(grown) < 128, grown


@pytest.mark.parametrize("threads", [0, None])
def test_memory_does_not_grow_with_the_pieces(tmp_path: Path, make_run: Any, threads: int | None) -> None:
    """A 7B model is 200,000 pieces at each of 64 sites: a list of them at every site would be gigabytes."""
    theta = {"w": np.zeros((200, 300), np.float32)}
    changed = {site: ({"w": theta["w"] + np.float32(0.5)}, 1) for site in "abcdefgh"}
    run, updates = make_run(Store(str(tmp_path)), theta, changed)
    peaks = []
    for elements in (3000, 3000, 20):  # what the first one imports stays
        tracemalloc.start()
        try:
            aggregate(run, 1, updates, Server(), limits=Limits(piece=elements, threads=threads))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1 << 20, peaks  # 20 pieces at 8 sites, and 3,000
