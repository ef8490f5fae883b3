"""Reading sharded safetensors piece by piece: bounded memory, the next piece on its way, hashed as it passes."""

import hashlib
import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import CorruptFile
from photon_core.store import Store, check_path
from photon_core.tensors import NUMPY_DTYPES, all_tensors, header_limit, read_header
from schemas.manifests import FileEntry

BLOCK = 1 << 20
Array = NDArray[Any]


class Piece(NamedTuple):
    """Elements `start` to `end` of a tensor, flat."""

    name: str
    start: int
    end: int


class TensorReader:
    """The tensors of the files that a manifest covers.

    Args:
        store: where they are.
        folder: the manifest's folder; the entries' paths are relative to it.
        entries: the files.
        pool: threads that read and hash ahead; without one, reading happens when asked.

    Raises:
        CorruptFile: two files claim the same tensor. Every method raises it, naming the file, for bytes that
            are not those the manifest covers.
    """

    def __init__(
        self, store: Store, folder: str, entries: Sequence[FileEntry], pool: Executor | None = None
    ) -> None:
        self.tensors = all_tensors(entries)
        self._pool = pool
        self._files = [_File(store, check_path(f"{folder}/{check_path(e.path)}"), e) for e in entries]
        self._file_of = {name: file for file in self._files for name in file.entry.tensors}

    def pieces(self, name: str, elements: int) -> list[Piece]:
        """A tensor cut into pieces of at most so many elements; none for an empty tensor."""
        count = math.prod(self.tensors[name].shape)
        return [Piece(name, start, min(start + elements, count)) for start in range(0, count, elements)]

    def chunks(self, name: str, elements: int) -> Iterator[Array]:
        """A tensor's elements, flat, at most so many at a time; each array is valid until the next."""
        return self.stream(self.pieces(name, elements))

    def stream(self, pieces: Sequence[Piece], prefix: str = "") -> Generator[Array, None, None]:
        """Pieces in order. Each array is valid, and the caller's to change, until the next is asked for.

        Read in the order of the files, every byte is read once and its hash comes with it.

        Args:
            pieces: what to read.
            prefix: put before the pieces' names.
        """
        size = max((piece.end - piece.start for piece in pieces), default=0)
        buffers = [bytearray(8 * size) for _ in range(2)]
        pending: Future[Array] | None = None
        try:
            for index, piece in enumerate(pieces):
                array = pending.result() if pending else self._read(piece, prefix, buffers[index % 2])
                if self._pool and index + 1 < len(pieces):
                    following = pieces[index + 1]
                    pending = self._pool.submit(self._read, following, prefix, buffers[(index + 1) % 2])
                yield array
        finally:
            if pending and not pending.cancel():
                pending.exception()  # it uses the file: let it end before anyone closes

    def verify(self) -> None:
        """Every file's hash is the manifest's; files that were not read in order are read again for it."""
        for file in self._files:
            file.verify()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, piece: Piece, prefix: str, buffer: bytearray) -> Array:
        name = prefix + piece.name
        file = self._file_of[name]
        dtype = np.dtype(NUMPY_DTYPES[self.tensors[name].dtype])
        view = memoryview(buffer)[: (piece.end - piece.start) * dtype.itemsize]
        file.read_into(name, piece.start * dtype.itemsize, view)
        return np.frombuffer(view, dtype)


class _File:
    """One safetensors file, hashed as long as it is read from front to back."""

    def __init__(self, store: Store, path: str, entry: FileEntry) -> None:
        self.store, self.path, self.entry = store, path, entry
        self._handle: BinaryIO | None = None
        self._starts: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._position = 0  # hashed so far
        self._at = 0  # where the handle stands
        self._verified = False

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` bytes into a tensor."""
        if not self._starts:
            self._open()
        start = self._starts[name] + offset
        if self._handle is None:
            self._handle = self.store.open_read(self.path)
            self._at = 0
        if self._at != start:
            self._handle.seek(start)
            self._at = start
        self._fill(view)
        if start == self._position:
            self._hash(view)

    def verify(self) -> None:
        if self._verified:
            return
        if not self._starts:
            self._open()
        self.close()
        self._digest, self._position = hashlib.sha256(), 0
        with self.store.open_read(self.path) as file:
            while self._position <= self.entry.bytes and (block := file.read(BLOCK)):
                self._digest.update(block)
                self._position += len(block)
        self._compare()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _open(self) -> None:
        header, infos = read_header(self.store, self.path, self.entry.bytes, header_limit(self.entry.tensors))
        promised = {name: (tensor.dtype, tensor.shape) for name, tensor in self.entry.tensors.items()}
        if {info.name: (info.dtype, info.shape) for info in infos.values()} != promised:
            raise CorruptFile(f"{self.store.locate(self.path)} holds other tensors than its manifest says")
        self._starts = {info.name: info.start for info in infos.values()}
        self._hash(memoryview(header))

    def _fill(self, view: memoryview) -> None:
        assert self._handle is not None
        done = 0
        while done < len(view):
            count = self._handle.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CorruptFile(f"{self.store.locate(self.path)} ends before byte {self.entry.bytes}")
            done += count
        self._at += done

    def _hash(self, view: memoryview) -> None:
        self._digest.update(view)
        self._position += len(view)
        if self._position == self.entry.bytes:
            self._compare()

    def _compare(self) -> None:
        name = self.store.locate(self.path)
        size = self.store.size(self.path)
        if size != self.entry.bytes:
            raise CorruptFile(f"{name} holds {size} bytes; its manifest says {self.entry.bytes}")
        if self._digest.hexdigest() != self.entry.sha256:
            raise CorruptFile(f"{name} does not have the sha256 that its manifest says: it was changed or damaged")
        self._verified = True
        self.close()
