"""How many files of a store are open at a time."""

import os
import resource
from contextlib import ExitStack
from pathlib import Path

from photon_core.store.open_ranges import OpenRanges
from photon_core.store.store import Store


def test_a_process_that_holds_most_of_its_descriptors_keeps_few_files_open(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = [f"{number:03d}" for number in range(200)]
    for name in names:
        store.create(name, b"data")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as held:
        for _ in range(600):
            held.enter_context(Path(os.devnull).open("rb"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 100, hard))
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        opened = OpenRanges()
        for name in names:
            with opened.use(name, lambda name=name: store.open_ranges(name)) as ranges:
                assert ranges.read_into([memoryview(bytearray(4))], 0) == 4
        for name in names:
            opened.close(name)
