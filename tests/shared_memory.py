"""What processes have left in shared memory, on a machine where others use it at the same time."""

import time
from pathlib import Path

SHM = Path("/dev/shm")


def left_behind(before: set[Path], seconds: float = 60) -> set[Path]:
    """Entries that came since `before` and that no running process maps; removal may take `seconds`."""
    limit = time.monotonic() + seconds
    while True:
        new = set(SHM.iterdir()) - before
        left = {path for path in new if str(path) not in _mapped()} if new else set()
        if not left or time.monotonic() > limit:
            return left
        time.sleep(0.2)


def _mapped() -> str:
    """The memory maps of all processes, as far as they are shared memory."""
    lines = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines += [line for line in maps.read_text().splitlines() if "/dev/shm/" in line]
        except OSError:
            pass  # it has ended
    return "\n".join(lines)
