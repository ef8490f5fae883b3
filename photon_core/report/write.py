"""A round's report into its store, in a process of its own: matplotlib takes a second to import.

    python -m photon_core.report.write    # reads {"store": URL, "options": {...}, "run": R, "t": 7, ...}

Prints one JSON object: where the page is, and the round's key picture as an SVG file.
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

TIMELINES = 3  # of a page that is written after every round
PR_SET_PDEATHSIG = 1


def write_report(store: Store, run: str, t: int, count: int | None, cache: Path | None = None) -> dict[str, Any]:
    """Put rounds/<t>/report.html into the store, of the rounds up to t.

    Args:
        store, run, t: the round.
        count: rounds that the federation file asks for.
        cache: a folder that keeps the manifests for the next report: each is read from the store once.

    Returns:
        The page's location, whether it is new, and the round's key picture.
    """
    where = Run(store, run, cache)
    record = read_record(where, count, t)
    place, sections = Place(PlaceKind.REPORT, run, t), sections_of(record, TIMELINES)
    try:
        where.commit(place, render_sections(record, sections).encode())
        new = True
    except StoreConflict:
        new = False  # another coordinator has told the same
    return {"location": store.locate(place.path), "new": new, "picture": picture(sections)}


def main() -> None:
    """Entry point: nothing of it outlives the process that asked, and it never takes a core from training."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    asked = json.load(sys.stdin)
    try:
        store = Store(asked["store"], **asked["options"])
        print(json.dumps(write_report(store, asked["run"], asked["t"], asked["count"], Path(asked["cache"]))))
    except PhotonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
