"""A pool of a store's files that are open for reading in ranges, with a limit on their number."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from photon_core.store.interface import Ranges

SHARE = 4  # the pool takes 1/SHARE of the descriptors that the process may still open


@dataclass
class _Open:
    ranges: Ranges
    users: int = 0
    ended: bool = False  # its last user closes it


class OpenRanges:
    """Open files, for several threads. The least recently used one is closed first, but none while it is read.

    Args:
        most: maximum number of open files; files that are being read may exceed it.
    """

    def __init__(self, most: int | None = None) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 4096 if soft == resource.RLIM_INFINITY else soft
        taken = len(list(Path("/proc/self/fd").iterdir()))
        self._most = most or max(8, (limit - taken) // SHARE)
        self._lock = threading.Lock()
        self._files: OrderedDict[object, _Open] = OrderedDict()

    @contextmanager
    def use(self, key: object, opened: Callable[[], Ranges]) -> Iterator[Ranges]:
        """The file's ranges, for the block.

        Args:
            key: key of the file.
            opened: function that opens the file, called if it is not open.
        """
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = _Open(opened())
            file.users += 1
            self._files.move_to_end(key)
            self._close_old()
        try:
            yield file.ranges
        finally:
            with self._lock:
                file.users -= 1
                if file.ended and not file.users:
                    file.ranges.close()

    def close(self, key: object) -> None:
        """Close the file if it is open, as soon as nobody reads from it."""
        with self._lock:
            if (file := self._files.pop(key, None)) is not None:
                self._end(file)

    def _close_old(self) -> None:
        if len(self._files) <= self._most:
            return
        for key in [key for key, file in self._files.items() if not file.users]:
            if len(self._files) <= self._most:
                return
            self._end(self._files.pop(key))

    @staticmethod
    def _end(file: _Open) -> None:
        file.ended = True
        if not file.users:
            file.ranges.close()
