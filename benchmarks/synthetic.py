"""A filesystem that generates its files' bytes as they are read, so that 64 updates of 7B need no disk.

A file is a safetensors header followed by one repeated block of content, the same at every site: its hash is
computed once for each shard of the model and of the update, not once for each site. Written data is counted and
discarded; manifests are kept.
"""

import io
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem
from typing_extensions import override

from benchmarks.updates import Shapes, commit_base, commit_update, site_name
from photon_core.hashing import Hashes
from photon_core.run.run import Run
from photon_core.tensors.container import make_header, tensor_bytes
from photon_core.tensors.shards import shard_plan
from schemas.manifests import FileEntry, TensorEntry

PROTOCOL = "synthetic"
BLOCK = 16 << 20  # bytes


class Bytes(io.RawIOBase):
    """A header, then a repeated block, up to a size."""

    def __init__(self, header: bytes, block: bytes, size: int) -> None:
        self._header, self._block, self._size, self._at = header, memoryview(block), size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._size - self._at))]
        done = 0
        while done < len(view):
            if self._at < len(self._header):
                part = memoryview(self._header)[self._at :]
            else:
                part = self._block[(self._at - len(self._header)) % BLOCK :]
            part = part[: len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done


class SyntheticFileSystem(AbstractFileSystem):
    """The files of this process, by path: generated, or written and kept if small."""

    protocol = PROTOCOL
    made: dict[str, tuple[bytes, bytes, int]] = {}  # noqa: RUF012 - shared by the whole process
    kept: dict[str, bytes] = {}  # noqa: RUF012
    written = 0

    @override
    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        size = self.made[path][2] if path in self.made else len(self.kept[path]) if path in self.kept else None
        if size is None:
            raise FileNotFoundError(path)
        return {"name": path, "size": size, "type": "file"}

    @override
    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        below = self._strip_protocol(path) + "/"
        names = {
            below + name[len(below) :].split("/")[0] for name in (*self.made, *self.kept) if name.startswith(below)
        }
        return sorted(names)

    @override
    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        path = self._strip_protocol(path)
        self.info(path)
        return Bytes(*self.made[path]) if path in self.made else io.BytesIO(self.kept[path])

    @override
    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        with self.open(path) as file:
            file.seek(start or 0)
            size = self.info(path)["size"]
            buffer = bytearray(max(0, min(size, size if end is None else end) - (start or 0)))
            file.readinto(buffer)
            return bytes(buffer)

    @override
    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        path = self._strip_protocol(path)
        self.kept[path] = bytes(value)

    @override
    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        SyntheticFileSystem.written += Path(lpath).stat().st_size

    @override
    def rm_file(self, path: str) -> None:
        self.kept.pop(self._strip_protocol(path), None)


fsspec.register_implementation(PROTOCOL, SyntheticFileSystem, clobber=True)


def make_synthetic(run: Run, shapes: Shapes, sites: int) -> None:
    """Make round 0 and the sites' float32 updates for round 1 in a store on this filesystem."""
    rng = np.random.default_rng(0)
    model = (0.02 * rng.standard_normal(BLOCK // 4)).astype(np.float32).tobytes()
    change = rng.integers(-2000, 2000, BLOCK // 4, np.int32).tobytes()
    root = run.store.url.removeprefix(f"{PROTOCOL}://")
    places = {name: TensorEntry(dtype="F32", shape=shape) for name, shape in shapes.items()}
    commit_base(run, _files(f"{root}/{run.round_dir(0)}", "model/", places, model))
    encoded = {name: TensorEntry(dtype="I32", shape=shape) for name, shape in shapes.items()}
    first = f"{root}/{run.site_dir(1, site_name(0), 1)}"
    files = _files(first, "", encoded, change)
    for number in range(sites):
        folder = f"{root}/{run.site_dir(1, site_name(number), 1)}"
        for entry in files:
            SyntheticFileSystem.made[f"{folder}/{entry.path}"] = SyntheticFileSystem.made[f"{first}/{entry.path}"]
        commit_update(run, site_name(number), number, "float32", files)


def _files(folder: str, stem: str, tensors: dict[str, TensorEntry], block: bytes) -> list[FileEntry]:
    entries = []
    plan = shard_plan(tensors)
    for number, there in enumerate(plan, 1):
        header = make_header(there)
        size = len(header) + sum(tensor_bytes(tensor) for tensor in there.values())
        digest, buffer, content = Hashes(), bytearray(BLOCK), Bytes(header, block, size)
        while count := content.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
        path = f"{stem}{number:05d}-of-{len(plan):05d}.safetensors"
        SyntheticFileSystem.made[f"{folder}/{path}"] = (header, block, size)
        sha256, blake3 = digest.hexdigests()
        entries.append(FileEntry(path=path, sha256=sha256, blake3=blake3, bytes=size, tensors=there))
    return entries
