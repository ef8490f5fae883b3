"""One safetensors file of a store, hashed as its bytes pass."""

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
STEP = 1 << 18  # bytes of a file on a disk that are read and then hashed while a core's cache still has them


class HashedFile:
    """One safetensors file, hashed as long as it is asked for from front to back.

    Ranges may be read by several threads; who has read waits for its turn to hash. A pool starts its jobs in
    the order that they were given, so the one that is waited for is always at work.

    Args:
        store, path: the file.
        entry: what its manifest says of it.
        opened: the files that are open, of several readers.
    """

    def __init__(self, store: Store, path: str, entry: FileEntry, opened: OpenRanges) -> None:
        self.store, self.path, self.entry, self._opened = store, check_path(path), entry, opened
        self.verified = False
        self._steps = store.is_local  # read and hashed in small steps; from a server, in requests side by side
        self._opening: Future[None] | None = None
        self._starts: dict[str, int] = {}
        self._check = Check(entry.sha256, entry.blake3)
        self._turn = Condition()
        self._position = 0  # hashed so far
        self._planned = 0  # asked for, from front to back
        self._broken = False  # something was not read: nobody's turn comes any more

    def prepare(self, pool: Executor | None) -> None:
        """Have the header read."""
        if pool and not self._starts and not self._opening:
            self._opening = pool.submit(self._open)

    def plan(self, name: str, offset: int, size: int) -> tuple[int, bool]:
        """Where the bytes from `offset` into a tensor begin, and whether they are the next to be hashed."""
        self._be_open()
        start = self._starts[name] + offset
        in_turn = start == self._planned
        if in_turn:
            self._planned += size
        return start, in_turn

    def read_into(self, views: Sequence[memoryview], start: int, in_turn: bool) -> None:
        """Fill the views from byte `start` on; hash them, in their turn."""
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
            self.give_up()
            raise

    def _read(self, views: Sequence[memoryview], start: int) -> None:
        with self._opened.use(self, lambda: self.store.open_ranges(self.path)) as ranges:
            count = ranges.read_into(views, start)
        if count < sum(map(len, views)):
            raise CorruptFile(f"{self.store.locate(self.path)} ends before byte {self.entry.bytes}")

    def _wait_for(self, start: int) -> bool:
        """Until all before `start` is hashed; whether that will ever be."""
        if self._position != start:
            with self._turn:
                self._turn.wait_for(lambda: self._broken or self._position == start)
        return not self._broken

    def give_up(self) -> None:
        """Some of what was asked for is not read: nobody waits to hash any more, and `verify` reads all again."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def verify(self) -> None:
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
        """Have the header read, by whoever has begun to: two would hash it twice."""
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
        """All before is hashed."""
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
