"""One measurement in a separate process, so that its memory can be measured. Prints one JSON object.

    python -m benchmarks.measured '{"what": "aggregate", "url": ..., "options": {...}}'

what: "read" (plain reads of the updates' files into one buffer), "aggregate", or "synthetic" (aggregate 7B shapes
that are generated while they are read). Peak memory excludes file pages (RssAnon), and the memory of imports and
manifests.
"""

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.updates import RUN, largest, shapes_of
from photon_core.aggregation.aggregate import aggregate
from photon_core.run.run import Run
from photon_core.store.store import Store
from schemas.manifests import UpdateManifest
from schemas.sections.server import Server

BUFFER = 8 << 20


class Peak:
    """Context manager that samples this process's memory."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self.most = max(self.most, anonymous())

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self.most = max(self.most, anonymous())


def anonymous() -> int:
    """Bytes of memory without file pages."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def main(task: dict[str, Any]) -> dict[str, float]:
    if task["what"] == "synthetic":
        from benchmarks.synthetic import make_synthetic

        run = Run(Store("synthetic://bench", single_writer=True), RUN)
        make_synthetic(run, largest(shapes_of(task["size"]), task["tensors"]), task["sites"])
    else:
        run = Run(Store(task["url"], **task.get("options", {})), RUN)
    folder = f"{run.round_dir(1)}/sites"
    sites = [f"site-{n:03d}" for n in range(task["sites"])]
    updates = {site: update for site in sites if (update := run.update(1, site, 1))}
    total = sum(entry.bytes for update in updates.values() for entry in update.files)
    with Peak() as peak:
        start, worked = time.perf_counter(), time.process_time()
        if task["what"] == "read":
            _read(task, folder, updates)
        else:
            aggregate(run, 1, updates, Server())
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak_gib = (peak.most - peak.before) / 2**30
    return {"seconds": seconds, "cpu_s": worked, "gb_s": total / seconds / 1e9, "peak_gib": peak_gib}


def _read(task: dict[str, Any], folder: str, updates: dict[str, UpdateManifest]) -> None:
    buffer = memoryview(bytearray(BUFFER))
    paths = [f"{folder}/{site}/0001/{entry.path}" for site, update in updates.items() for entry in update.files]
    if "endpoint_url" not in task.get("options", {}):
        for path in paths:
            with (Path(task["url"]) / path).open("rb", buffering=0) as file:
                while file.readinto(buffer):  # type: ignore[attr-defined]
                    pass
        return
    connection = http.client.HTTPConnection(urlsplit(task["options"]["endpoint_url"]).netloc)
    for path in paths:
        connection.request("GET", f"/{task['url'].removeprefix('s3://')}/{path}")
        answer = connection.getresponse()
        while answer.readinto(buffer):
            pass


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
