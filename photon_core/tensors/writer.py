"""Writing sharded safetensors piece by piece: in bounded memory, written and hashed in the background."""

import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from photon_core.hashing import Hashes
from photon_core.store.store import Store, Writer
from photon_core.tensors.container import make_header, tensor_bytes
from schemas.manifests import FileEntry, TensorEntry


class ShardWriter:
    """Writes the shards of a plan, under unique names.

    Args:
        store: target store.
        folder: folder of the manifest that will name the files.
        stem: start of the files' paths in the manifest, such as "model/".
        plan: contents of each shard, from `shard_plan`.
        pool: threads that hash and write; without a pool, `write` does.
        written: existing shards, by number, which are not written again.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        stem: str,
        plan: Sequence[Mapping[str, TensorEntry]],
        pool: Executor | None = None,
        written: Mapping[int, FileEntry] | None = None,
    ) -> None:
        self._store, self._folder, self._stem = store, folder, stem
        self._pool = pool
        self._nonce = uuid.uuid4().hex[:8]
        self.plan = plan
        self._entries = dict(written or {})
        self._kept = set(self._entries)  # a record names them: they must not be removed
        self._todo = [number for number in range(len(self.plan)) if number not in self._entries]
        self._due = [
            (name, tensor_bytes(part)) for number in self._todo for name, part in self.plan[number].items()
        ]
        self._due = [(name, size) for name, size in self._due if size]
        self._left = self._due[0][1] if self._due else 0  # bytes still to come of the current tensor, or part
        self._file: Writer | None = None
        self._hashes = Hashes()
        self._filled = 0  # tensor bytes of the open shard
        self._buffers = [bytearray(), bytearray()]
        self._pending: Future[None] | None = None
        self._closing: dict[int, Future[None]] = {}
        self._leaving: deque[Future[None]] = deque()  # those of `_closing` that nobody has waited for
        self._skip_empty()

    @property
    def order(self) -> list[str]:
        """Names of the tensors, in the order in which they must be written."""
        return list(dict.fromkeys(name for shard in self.plan for name in shard))

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Write the next elements, flat, of the current tensor. The caller may reuse the array at once.

        Raises:
            ValueError: another tensor is due, or the tensor is full.
        """
        due = self._due[0][0] if self._due else ""
        room = sum((size for _, size in takewhile(lambda part: part[0] == due, self._due[1:])), self._left)
        if name != due or values.nbytes > room:
            raise ValueError(f"{values.nbytes} bytes of '{name}' offered; due: {room} of '{due}'")
        while values.nbytes:
            count = self._left // values.itemsize
            data = self._copy(values[:count])
            values = values[count:]
            self._left -= len(data)
            if not self._left:
                del self._due[0]
                self._left = self._due[0][1] if self._due else 0
            self._in_background(partial(self._append, data))

    def close(self) -> list[FileEntry]:
        """The entries of all files, in order, once they are durable.

        Raises:
            ValueError: a tensor is incomplete.
        """
        if self._due:
            self.discard()
            raise ValueError(f"tensor '{self._due[0][0]}' was not written whole")
        self._wait()
        return [self.shard(number) for number in range(len(self.plan))]

    def shard(self, number: int) -> FileEntry:
        """The entry of a complete shard, once it is durable."""
        if number not in self._entries:
            self._wait()
        if number in self._closing:
            self._closing[number].result()
        return self._entries[number]

    def keep(self, number: int) -> None:
        """Except this shard, which a record names, from `discard`."""
        self._kept.add(number)

    def discard(self) -> None:
        """Remove all shards that were written and not kept: no manifest names them."""
        with suppress(Exception):
            self._wait()
        for closing in self._closing.values():
            closing.exception()
        if self._file is not None:
            self._file.discard()
            self._file = None
        for number in self._entries.keys() - self._kept:
            with suppress(Exception):  # at worst an unreferenced file remains
                self._store.discard(f"{self._folder}/{self._entries.pop(number).path}")

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

    def _in_background(self, work: Callable[[], None]) -> None:
        self._wait()
        while len(self._leaving) > 1:  # some stores keep a shard in TMPDIR until it is sent
            self._leaving.popleft().result()
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
        self._hashes.update(data)
        self._file.write(data)
        self._filled += len(data)
        if self._filled == self._shard_bytes():
            self._finish()
            self._skip_empty()

    def _skip_empty(self) -> None:
        """Write the shards that hold no elements at all."""
        while self._todo and not self._shard_bytes():
            self._start()
            self._finish()

    def _shard_bytes(self) -> int:
        return sum(tensor_bytes(tensor) for tensor in self.plan[self._todo[0]].values())

    def _path(self) -> str:
        return f"{self._stem}{self._todo[0] + 1:05d}-of-{len(self.plan):05d}-{self._nonce}.safetensors"

    def _start(self) -> None:
        header = make_header(self.plan[self._todo[0]])
        self._file = self._store.open_write(f"{self._folder}/{self._path()}")
        self._file.write(header)
        self._hashes = Hashes().update(header)
        self._filled = 0

    def _finish(self) -> None:
        assert self._file is not None
        number, path = self._todo[0], self._path()
        tensors = dict(self.plan[number])
        sha256, blake3 = self._hashes.hexdigests()
        size = len(make_header(tensors)) + self._filled
        file, self._file = self._file, None
        del self._todo[0]
        if self._pool:  # the disk flushes the file while the next shard is made
            self._closing[number] = self._pool.submit(file.close)
            self._leaving.append(self._closing[number])
        else:
            file.close()
        self._entries[number] = FileEntry(path=path, sha256=sha256, blake3=blake3, bytes=size, tensors=tensors)
