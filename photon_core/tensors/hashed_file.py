"""One safetensors file of a store, hashed while it is read."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from threading import Condition

from photon_core.errors import CorruptFile
from photon_core.hashing import Check
from photon_core.store.open_ranges import OpenRanges
from photon_core.store.store import Store, check_path
from photon_core.tensors.container import check_held, header_limit, read_header
from schemas.manifests import FileEntry

BLOCK = 1 << 20
STEP = 1 << 18  # bytes of a local file that are read at once and hashed while they are in a core's cache


class HashedFile:
    """One safetensors file, hashed as long as it is requested sequentially.

    Several threads may read ranges. After a read, a thread waits for its turn to hash. A pool starts its jobs in
    the order of submission, so the job that others wait for is always running.

    Args:
        store, path: store and path of the file.
        entry: manifest entry of the file.
        opened: pool of open files, shared by several readers.
    """

    def __init__(self, store: Store, path: str, entry: FileEntry, opened: OpenRanges) -> None:
        self.store, self.path, self.entry, self._opened = store, check_path(path), entry, opened
        self.verified = False
        self._steps = store.is_local  # a local file is read and hashed in small steps, a remote one in requests
        self._opening: Future[None] | None = None
        self._starts: dict[str, int] = {}
        self._check = Check(entry.sha256, entry.blake3)
        self._turn = Condition()
        self._position = 0  # hashed so far
        self._planned = 0  # requested so far, sequentially
        self._broken = False  # a range was not read: no later turn to hash can come

    def prepare(self, pool: Executor | None) -> None:
        """Prefetch the header."""
        if pool and not self._starts and not self._opening:
            self._opening = pool.submit(self._open)

    def plan(self, name: str, offset: int, size: int) -> tuple[int, bool]:
        """The position in the file of a tensor's bytes from `offset` on, and whether they are the next to hash."""
        self._be_open()
        start = self._starts[name] + offset
        in_turn = start == self._planned
        if in_turn:
            self._planned += size
        return start, in_turn

    def read_into(self, views: Sequence[memoryview], start: int, in_turn: bool) -> None:
        """Fill the views from byte `start` on, and hash them if they are in turn."""
        try:
            if in_turn and self._steps and self._wait_for(start):
                for view in views:
                    for at in range(0, len(view), STEP):
                        self._read([view[at : at + STEP]], start + at)
                        self._check.update(view[at : at + STEP])
                    start += len(view)
                self._passed(start)
                return
            self._read(views, start)
            if in_turn and self._wait_for(start):
                self._hash(views)
        except BaseException:
            self.cancel()
            raise

    def _read(self, views: Sequence[memoryview], start: int) -> None:
        with self._opened.use(self, lambda: self.store.open_ranges(self.path)) as ranges:
            count = ranges.read_into(views, start)
        if count < sum(map(len, views)):
            raise CorruptFile(f"{self.store.locate(self.path)} ends before byte {self.entry.bytes}")

    def _wait_for(self, start: int) -> bool:
        """Wait until everything before `start` is hashed. False if that cannot happen any more."""
        if self._position != start:
            with self._turn:
                self._turn.wait_for(lambda: self._broken or self._position == start)
        return not self._broken

    def cancel(self) -> None:
        """End all waits for a turn to hash: a requested range is not read. `verify` then reads the whole file."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def verify(self) -> None:
        """Read and hash the whole file, unless it is already verified.

        Raises:
            CorruptFile: the bytes are not those of the manifest.
        """
        if self.verified:
            return
        self._be_open()
        self._check, self._position = Check(self.entry.sha256, self.entry.blake3), 0
        block = memoryview(bytearray(min(BLOCK, self.entry.bytes)))
        while self._position < self.entry.bytes:
            size = min(len(block), self.entry.bytes - self._position)
            self._read([block[:size]], self._position)
            self._hash([block[:size]])

    def close(self) -> None:
        if self._opening:
            self._opening.exception()
        self._opened.close(self)

    def _be_open(self) -> None:
        """Read the header, or wait for the job that reads it: two threads would hash it twice."""
        if self._opening:
            self._opening.result()
        if not self._starts:
            self._open()

    def _open(self) -> None:
        header, infos = read_header(self.store, self.path, self.entry.bytes, header_limit(self.entry.tensors))
        check_held(self.entry.tensors, infos, self.store.locate(self.path))
        self._planned = len(header)
        self._hash([memoryview(header)])
        self._starts = {info.name: info.start for info in infos.values()}

    def _hash(self, views: Sequence[memoryview]) -> None:
        for view in views:
            self._check.update(view)
        self._passed(self._position + sum(map(len, views)))

    def _passed(self, position: int) -> None:
        """Record that everything before `position` is hashed."""
        with self._turn:
            self._position = position
            self._turn.notify_all()
        if self._position == self.entry.bytes:
            self._compare()

    def _compare(self) -> None:
        name = self.store.locate(self.path)
        size = self.store.size(self.path)
        if size != self.entry.bytes:
            raise CorruptFile(f"{name} holds {size} bytes; its manifest says {self.entry.bytes}")
        if self._check.hexdigest() != self._check.expected:
            raise CorruptFile(
                f"{name} does not have the {self._check.name} that its manifest says: it was changed or damaged"
            )
        self.verified = True
        self._opened.close(self)
