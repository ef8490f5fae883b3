"""Reading sharded safetensors piece by piece: in bounded memory, prefetched, and hashed while read."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.store.open_ranges import OpenRanges
from photon_core.store.store import Store, check_path
from photon_core.tensors.container import DTYPE_BYTES, NUMPY_DTYPES
from photon_core.tensors.hashed_file import HashedFile
from photon_core.tensors.shards import all_tensors
from schemas.manifests import FileEntry, TensorEntry

LINE = 64  # bytes of a cache line
CHUNK = 4 << 20  # elements that `array` reads at a time
Array = NDArray[Any]
Load = Callable[[], Array]
Spans = Mapping[str, tuple[int, int]]  # by tensor, the first element and the one after the last


class Piece(NamedTuple):
    """Elements `start` to `end` of a tensor, flat."""

    name: str
    start: int
    end: int


class TensorReader:
    """The tensors of the files that a manifest covers.

    Args:
        store: store of the files.
        folder: folder of the manifest; the entries' paths are relative to it.
        entries: manifest entries of the files.
        pool: threads that prefetch and hash; without a pool, the caller reads.
        opened: pool of open files, shared by several readers; by default this reader has its own.

    Raises:
        CorruptFile: two files claim the same tensor, or rows of a tensor are missing. Every method raises it, with
            the file's name, for bytes that are not those that the manifest covers.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        entries: Sequence[FileEntry],
        pool: Executor | None = None,
        opened: OpenRanges | None = None,
    ) -> None:
        self.tensors = all_tensors(entries)
        self._pool = pool
        opened = opened or OpenRanges()
        self._files = [HashedFile(store, f"{folder}/{check_path(e.path)}", e, opened) for e in entries]
        self._parts: dict[str, list[_Part]] = {}
        for number, file in enumerate(self._files):
            for name, tensor in file.entry.tensors.items():
                self._parts.setdefault(name, []).append(_Part(*span(tensor), number))

    def pieces(self, name: str, elements: int) -> list[Piece]:
        """A tensor in pieces of at most `elements` elements; none for an empty tensor."""
        return list(cut(name, 0, math.prod(self.tensors[name].shape), elements))

    def chunks(self, name: str, elements: int) -> Iterator[Array]:
        """A tensor's elements, flat, in arrays of at most `elements`; each array is valid until the next."""
        return self.stream(self.pieces(name, elements))

    def array(self, name: str) -> Array:
        """A whole tensor."""
        tensor, at = self.tensors[name], 0
        flat = np.empty(math.prod(tensor.shape), NUMPY_DTYPES[tensor.dtype])
        for chunk in self.chunks(name, CHUNK):
            flat[at : at + len(chunk)] = chunk
            at += len(chunk)
        return flat.reshape(tensor.shape)

    def stream(self, pieces: Iterable[Piece], prefix: str = "", ahead: int = 1, keep: int = 0) -> Iterator[Array]:
        """The arrays of the pieces, in order, with the arguments of `loads`."""
        with closing(self.loads(pieces, prefix, ahead, keep)) as loads:
            for load in loads:
                yield load()

    def loads(
        self, pieces: Iterable[Piece], prefix: str = "", ahead: int = 1, keep: int = 0, together: int = 0
    ) -> Generator[Load, None, None]:
        """One function for each piece, in order, that returns its array. Call each once, in this order, from any
        thread.

        Without a pool, the call reads. Each array is valid, and the caller may change it, until `keep` + 1 more
        pieces are requested. In the order of the files, every byte is read once, and hashed while read.

        Args:
            pieces: pieces to read, drawn from the iterable as reading proceeds.
            prefix: prefix of the pieces' tensor names.
            ahead: number of concurrent prefetch jobs, beyond the one whose pieces are requested.
            keep: number of pieces that remain valid beside the newest.
            together: bytes of small pieces that one job reads, in one request where they are neighbours.
        """
        ahead, together = (ahead, together) if self._pool else (0, 0)
        groups = self._groups(pieces, prefix, together)
        buffers = [_aligned(0) for _ in range(ahead + keep + 1)]
        coming: deque[list[Load]] = deque()
        running: deque[Future[None]] = deque(maxlen=len(buffers))
        requested = 0
        try:
            while True:
                while len(coming) <= ahead and (group := next(groups, None)):
                    place = requested % len(buffers)
                    if len(buffers[place]) < group.end:
                        buffers[place] = _aligned(group.end)
                    buffer = buffers[place]
                    arrays = [buffer[at : at + self._bytes(piece, prefix)] for piece, at in group.places]
                    fill: Callable[[], None] = partial(self._fill, self._plan(group, prefix, arrays))
                    if self._pool:
                        running.append(self._pool.submit(fill))
                        fill = running[-1].result
                    dtypes = [NUMPY_DTYPES[self.tensors[prefix + piece.name].dtype] for piece, _ in group.places]
                    coming.append([partial(_filled, fill, a.view(d)) for a, d in zip(arrays, dtypes, strict=True)])
                    requested += 1
                if not coming:
                    return
                yield from coming.popleft()
        except BaseException:
            self.cancel()  # another stream may wait to hash after bytes that are never read
            for job in running:
                job.cancel()
            raise
        finally:
            for job in running:
                if not job.cancelled():
                    job.exception()  # the job uses the file: it must end before the file is closed

    def cancel(self) -> None:
        """End all waits for ranges that will not be read. `verify` then reads the files again."""
        for file in self._files:
            file.cancel()

    def verify(self, parts: Spans | None = None) -> None:
        """Check that every file has the manifest's hash. Files that were not read in order are read again.

        Args:
            parts: elements of tensors; only the files that hold some of them are checked.

        Raises:
            CorruptFile: a file's bytes are not those of the manifest.
        """
        for file in self._holding(parts):
            file.verify()

    def verified(self, parts: Spans) -> bool:
        """Whether all files that hold some of these elements are already verified."""
        return all(file.verified for file in self._holding(parts))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _bytes(self, piece: Piece, prefix: str) -> int:
        return (piece.end - piece.start) * self._itemsize(prefix + piece.name)

    def _itemsize(self, name: str) -> int:
        return DTYPE_BYTES[self.tensors[name].dtype]

    def _groups(self, pieces: Iterable[Piece], prefix: str, together: int) -> Iterator["_Group"]:
        """The groups of pieces that one job reads each: one piece, or as many as fit into `together` bytes."""
        group: _Group | None = None
        for piece in pieces:
            size = self._bytes(piece, prefix)
            at = -(-group.end // LINE) * LINE if group else 0
            if group and at + size <= together:
                group = _Group([*group.places, (piece, at)], at + size)
            else:
                if group:
                    yield group
                group = _Group([(piece, 0)], size)
        if group:
            yield group

    def _plan(self, group: "_Group", prefix: str, arrays: Sequence[NDArray[np.uint8]]) -> list["_Read"]:
        """The reads of a group, in order. Call it in the order of the groups."""
        reads: list[_Read] = []
        for (piece, _), array in zip(group.places, arrays, strict=True):
            name, at = prefix + piece.name, 0
            item = self._itemsize(name)
            for part in self._parts[name]:
                start, end = max(part.start, piece.start), min(part.end, piece.end)
                if start < end:
                    file = self._files[part.file]
                    for following in self._files[part.file : part.file + 2]:
                        following.prepare(self._pool)
                    view = array.data[at : at + (end - start) * item]
                    place, in_turn = file.plan(name, (start - part.start) * item, len(view))
                    last = reads[-1] if reads else None
                    if last and last.file is file and last.end == place and last.in_turn == in_turn:
                        last.views.append(view)
                    else:
                        reads.append(_Read(file, place, in_turn, [view]))
                    at += len(view)
        return reads

    def _fill(self, reads: Sequence["_Read"]) -> None:
        for read in reads:
            read.file.read_into(read.views, read.start, read.in_turn)

    def _holding(self, parts: Spans | None) -> list[HashedFile]:
        return [file for file in self._files if parts is None or _overlap(file.entry.tensors, parts)]


def _filled(fill: Callable[[], None], array: Array) -> Array:
    fill()
    return array


class _Part(NamedTuple):
    """Elements `start` to `end` of a tensor are in file number `file`."""

    start: int
    end: int
    file: int


class _Group(NamedTuple):
    """Pieces that one job reads, each with its offset in the job's buffer, and the end of the last one."""

    places: list[tuple[Piece, int]]
    end: int


class _Read(NamedTuple):
    """A read of a file's bytes from `start` on, into one view after the other."""

    file: HashedFile
    start: int
    in_turn: bool
    views: list[memoryview]

    @property
    def end(self) -> int:
        return self.start + sum(map(len, self.views))


def cut(name: str, start: int, end: int, elements: int) -> Iterator[Piece]:
    """Elements `start` to `end` of a tensor in pieces of at most `elements`."""
    return (Piece(name, at, min(at + elements, end)) for at in range(start, end, elements))


def span(tensor: TensorEntry) -> tuple[int, int]:
    """The first element that a file holds of a tensor, and the one after the last."""
    row = math.prod(tensor.shape[1:])
    return (0, math.prod(tensor.shape)) if tensor.rows is None else (tensor.rows[0] * row, tensor.rows[1] * row)


def _overlap(file: Mapping[str, TensorEntry], parts: Spans) -> bool:
    for name in file.keys() & parts.keys():
        (a, b), (c, d) = span(file[name]), parts[name]
        if a == b or max(a, c) < min(b, d):
            return True
    return False


def _aligned(size: int) -> NDArray[np.uint8]:
    """Uninitialised bytes, aligned to a cache line."""
    raw = np.empty(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]
