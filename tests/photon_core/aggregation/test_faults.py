"""A round while every read and every write of its store fails in turn: never a wrong commit, always a next try."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typing_extensions import override

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.errors import PhotonError
from photon_core.run.run import Run, model_sha256
from photon_core.store import local
from photon_core.store.store import Store
from schemas.manifests import RoundManifest
from schemas.sections.server import Server
from tests.federations import updates_of

SERVER = Server(optimizer="nesterov", momentum=0.9, lr=0.7)
SHARD = 170  # bytes: the model and its momentum are two files each


class Fault:
    """Breaks the n-th operation, counted over all threads, in a way that real stores and disks have.

    before: it is not done, and raises. after: it is done, and its answer is lost. changed: a read brings a bit
    that was not written; a write is cut in half, and raises.
    """

    def __init__(self) -> None:
        self.lock, self.mode, self.left, self.hits = Lock(), "", 0, 0

    def arm(self, mode: str, number: int) -> None:
        self.mode, self.left, self.hits = mode, number, 0

    def turn(self) -> bool:
        with self.lock:
            self.left -= 1
            self.hits += self.left == 0
            return self.left == 0

    def call(self, operation: Callable[[], Any], changed: Callable[[], Any] | None = None) -> Any:
        if (self.mode == "changed" and changed is None) or not self.turn():
            return operation()
        if changed is not None and self.mode == "changed":
            return changed()
        if self.mode == "after":
            operation()
        raise OSError(errno.EIO, "broken on purpose")


FAULT = Fault()


class Faulty(MemoryFileSystem):
    """An fsspec filesystem that breaks."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @override
    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("faulty://"))

    @override
    def info(self, path: str, **kwargs: Any) -> Any:
        return FAULT.call(lambda: MemoryFileSystem.info(self, path, **kwargs))

    @override
    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return FAULT.call(lambda: MemoryFileSystem.ls(self, path, detail, **kwargs))

    @override
    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        def read() -> bytes:
            return MemoryFileSystem.cat_file(self, path, start, end)

        return FAULT.call(read, (lambda: other(read())) if path.endswith(".safetensors") else None)

    @override
    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        return FAULT.call(lambda: MemoryFileSystem.pipe_file(self, path, value, mode))

    @override
    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        FAULT.call(lambda: MemoryFileSystem.pipe_file(self, rpath, Path(lpath).read_bytes()))


class FaultyOs:
    """The system's calls, some of which break. Nothing is flushed to the disk: no power is cut here."""

    def __getattr__(self, name: str) -> Any:
        call: Any = (lambda _: None) if name == "fsync" else getattr(os, name)
        if name not in ("open", "preadv", "write", "fsync", "link"):
            return call
        return lambda *args, **kwargs: FAULT.call(lambda: call(*args, **kwargs), self._changed(name, *args))

    def _changed(self, name: str, descriptor: Any, *args: Any) -> Callable[[], Any] | None:
        def read() -> int:
            count = os.preadv(descriptor, *args)
            for view in args[0]:
                view[:count] = other(bytes(view[:count]))
            return count

        def write() -> int:
            os.write(descriptor, memoryview(args[0])[: len(args[0]) // 2])
            raise OSError(errno.ENOSPC, "full on purpose")

        return {"preadv": read, "write": write}.get(name)


def other(data: bytes) -> bytes:
    """The same number of bytes, one bit of them another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :] if data else data


@pytest.fixture(params=["disk", "server"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """number -> URL of a store with the same run: round 0, and two sites' updates for round 1."""
    FAULT.arm("", 0)
    if request.param == "disk":
        monkeypatch.setattr(local, "os", FaultyOs())
        yield lambda number: str(tmp_path / str(number))
        return
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    yield lambda number: f"faulty://{number}"
    Faulty.store.clear()


def store_at(url: str) -> Store:
    return Store(url, single_writer=True, retry_seconds=0) if "://" in url else Store(url)


def one_round(url: str, threads: int) -> RoundManifest:
    """Round 1, as a coordinator that knows nothing but the store makes it."""
    run = Run(store_at(url), "run")
    if (done := run.round(1)) is None:
        updates = updates_of(run, 1, "a", "b")
        result = aggregate(run, 1, updates, SERVER, limits=Limits(shard_bytes=SHARD, piece=9, threads=threads))
        done = RoundManifest(
            **{"run": "run", "round": 1, "model": result.model, "optimizer": result.optimizer},
            **{"federation_sha256": "", "created": "", "versions": {}, "metrics": result.norms},
            model_sha256=model_sha256(result.model),
            previous_sha256=run.round_sha256(0),
        )
        run.commit_round(done)
    return done


def content(manifest: RoundManifest) -> Any:
    return manifest.model_sha256, model_sha256(manifest.optimizer), manifest.metrics


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("mode", ["before", "after", "changed"])
def test_a_fault_at_every_read_and_write_never_commits_a_wrong_round(
    url: Any, make_run: Any, mode: str, threads: int
) -> None:
    theta = {"w": np.arange(40, dtype=np.float32).reshape(10, 4), "b": np.ones(5, np.float32)}
    sites = {site: ({n: v + np.float32(k + 0.5) for n, v in theta.items()}, 10 + k) for k, site in enumerate("ab")}
    make_run(store_at(url("right")), theta, sites, SHARD)
    right = one_round(url("right"), threads)
    assert len(right.model) == len(right.optimizer) == 2

    broken = number = 0
    while number == broken:  # until an operation that there is none of
        number += 1
        make_run(store_at(url(number)), theta, sites, SHARD)
        FAULT.arm(mode, number)
        try:
            one_round(url(number), threads)
        except (OSError, PhotonError) as error:
            # a changed bit is reported by effect: another hash, no safetensors file, a value that is not finite
            assert "on purpose" in str(error) or (mode == "changed" and isinstance(error, PhotonError))
        broken += FAULT.hits
        FAULT.arm("", 0)

        run = Run(store_at(url(number)), "run")
        if (committed := run.round(1)) is not None:
            assert content(committed) == content(right)
        again = one_round(url(number), threads)
        assert content(again) == content(right)
        for entry in (*again.model, *again.optimizer):
            run.store.check(entry, run.round_dir(1))
    assert broken > 10
