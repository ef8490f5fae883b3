"""Writing sharded safetensors piece by piece: bounded memory, written and hashed behind the caller's back."""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from photon_core.store import Store, Writer
from photon_core.tensors import SHARD_BYTES, make_header, shard_plan, tensor_bytes
from schemas.manifests import FileEntry, TensorEntry


class ShardWriter:
    """Shards of the given tensors, under names that no other writer has.

    Args:
        store: where to.
        folder: the folder of the manifest that will name the files.
        stem: start of the files' paths below it, like "model/".
        tensors: what will be written.
        max_bytes: largest shard, unless one tensor is larger.
        pool: threads that hash and write; without one, that happens in `write`.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        stem: str,
        tensors: Mapping[str, TensorEntry],
        max_bytes: int = SHARD_BYTES,
        pool: Executor | None = None,
    ) -> None:
        self._store, self._folder, self._stem, self._tensors = store, folder, stem, tensors
        self._pool = pool
        self._nonce = uuid.uuid4().hex[:8]
        self._plan = shard_plan(tensors, max_bytes)
        self._entries: list[FileEntry] = []
        self._file: Writer | None = None
        self._digest = hashlib.sha256()
        self._written = 0  # tensor bytes of the open shard
        self._names = [name for shard in self._plan for name in shard if tensor_bytes(tensors[name])]
        self._left = 0  # bytes of the current tensor still to come
        self._current = ""
        self._buffers = [bytearray(), bytearray()]
        self._pending: Future[None] | None = None
        self._closing: list[Future[None]] = []
        self._skip_empty()

    @property
    def order(self) -> list[str]:
        """The tensors in the order that they must be written in."""
        return [name for shard in self._plan for name in shard]

    def write(self, name: str, values: NDArray[Any]) -> None:
        """The next elements, flat, of the tensor whose turn it is. The array is the caller's again at once.

        Raises:
            ValueError: it is another tensor's turn, or the tensor is full.
        """
        if not self._left:
            self._current = self._names.pop(0) if self._names else ""
            self._left = tensor_bytes(self._tensors[self._current]) if self._current else 0
        if name != self._current or values.nbytes > self._left:
            raise ValueError(f"{values.nbytes} bytes of '{name}' offered; due: {self._left} of '{self._current}'")
        self._left -= values.nbytes
        data = self._copy(values)
        self._behind(lambda: self._append(data))

    def close(self) -> list[FileEntry]:
        """The files, in order, durable.

        Raises:
            ValueError: something was not written.
        """
        if self._left or self._names:
            self.discard()
            raise ValueError(f"tensor '{self._names[0] if self._names else self._current}' was not written whole")
        self._wait()
        for closing in self._closing:
            closing.result()
        return self._entries

    def discard(self) -> None:
        """Remove what was written: no manifest names it."""
        with suppress(Exception):
            self._wait()
        for closing in self._closing:
            closing.exception()
        if self._file is not None:
            self._file.discard()
            self._file = None
        for entry in self._entries:
            with suppress(Exception):  # litter at worst
                self._store.discard(f"{self._folder}/{entry.path}")
        self._entries = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.discard()

    def _copy(self, values: NDArray[Any]) -> memoryview:
        self._buffers.reverse()
        if len(self._buffers[0]) < values.nbytes:
            self._buffers[0] = bytearray(values.nbytes)
        view = memoryview(self._buffers[0])[: values.nbytes]
        np.copyto(np.frombuffer(view, values.dtype), values)
        return view

    def _behind(self, work: Callable[[], None]) -> None:
        self._wait()
        if self._pool:
            self._pending = self._pool.submit(work)
        else:
            work()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _append(self, data: memoryview) -> None:
        if self._file is None:
            self._start()
        assert self._file is not None
        self._digest.update(data)
        self._file.write(data)
        self._written += len(data)
        if self._written == self._shard_bytes():
            self._finish()
            self._skip_empty()

    def _skip_empty(self) -> None:
        """Write the shards that hold no elements at all."""
        while len(self._entries) < len(self._plan) and not self._shard_bytes():
            self._start()
            self._finish()

    def _shard(self) -> dict[str, TensorEntry]:
        return {name: self._tensors[name] for name in self._plan[len(self._entries)]}

    def _shard_bytes(self) -> int:
        return sum(tensor_bytes(tensor) for tensor in self._shard().values())

    def _path(self) -> str:
        number = len(self._entries) + 1
        return f"{self._stem}{number:05d}-of-{len(self._plan):05d}-{self._nonce}.safetensors"

    def _start(self) -> None:
        header = make_header(self._shard())
        self._file = self._store.open_write(f"{self._folder}/{self._path()}")
        self._file.write(header)
        self._digest = hashlib.sha256(header)
        self._written = 0

    def _finish(self) -> None:
        assert self._file is not None
        tensors = self._shard()
        size = len(make_header(tensors)) + self._written
        entry = FileEntry(path=self._path(), sha256=self._digest.hexdigest(), bytes=size, tensors=tensors)
        file, self._file = self._file, None
        self._entries.append(entry)
        if self._pool:  # the disk flushes it while the next shard is made
            self._closing.append(self._pool.submit(file.close))
        else:
            file.close()
