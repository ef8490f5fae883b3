"""A separate process that writes a round's report into its store, because matplotlib takes a second to import.

    python -m photon_core.report.write    # reads {"store": URL, "options": {...}, "run": R, "t": 7, ...}

It prints one JSON object: the location of the page, and the round's key picture as an SVG file.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from photon_core.errors import PhotonError, StoreConflict
from photon_core.evidence.record import read_record
from photon_core.report.page import picture, render_sections, sections_of
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run
from photon_core.store.store import Store

TIMELINES = 3  # timelines of a page that is written after every round
PR_SET_PDEATHSIG = 1


def write_report(store: Store, run: str, t: int, count: int | None, cache: Path | None = None) -> dict[str, Any]:
    """Write rounds/<t>/report.html into the store, about the rounds up to t.

    Args:
        store, run, t: store, run and round.
        count: number of rounds in the federation file.
        cache: folder that keeps the manifests for the next report, so that each is read from the store once.

    Returns:
        the page's location, whether it is new, and the round's key picture.
    """
    where = Run(store, run, cache)
    record = read_record(where, count, t)
    place, sections = Place(PlaceKind.REPORT, run, t), sections_of(record, TIMELINES)
    try:
        where.commit(place, render_sections(record, sections).encode())
        new = True
    except StoreConflict:
        new = False  # another coordinator has written the same report
    return {"location": store.locate(place.path), "new": new, "picture": picture(sections)}


def main() -> None:
    """Entry point. It ends with its parent process, and its low priority leaves the cores to training."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    request = json.load(sys.stdin)
    try:
        store, cache = Store(request["store"], **request["options"]), Path(request["cache"])
        print(json.dumps(write_report(store, request["run"], request["t"], request["count"], cache)))
    except PhotonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
