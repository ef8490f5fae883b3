"""Float32 tensors in local safetensors files: reading any range of them, and regrouping them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import CorruptFile
from photon_core.tensors.container import read_local_header, tensors_of
from photon_core.tensors.reader import span
from photon_core.tensors.shards import SHARD_BYTES, whole_tensors, write_shards
from schemas.manifests import FileEntry, TensorEntry

Float32 = NDArray[np.float32]
ITEM = 4  # bytes of an element


class LocalTensors:
    """The tensors that local files hold together. Data is read on request.

    Args:
        files: paths, each with the tensors that its manifest names.

    Raises:
        CorruptFile: two files claim the same tensor, rows of one are missing, or a file holds something else.
    """

    def __init__(self, files: Sequence[tuple[Path, Mapping[str, TensorEntry]]]) -> None:
        self.tensors = whole_tensors((str(path), held) for path, held in files)
        self._parts: dict[str, list[_Part]] = {}
        for path, held in files:
            _, infos = read_local_header(path)
            for name, tensor in held.items():
                info = infos.get(name)
                if info is None or (info.dtype, info.shape) != ("F32", tensor.held):
                    found = "absent" if info is None else f"{info.dtype} {list(info.shape)}"
                    raise CorruptFile(f"{path}: tensor '{name}' is {found}, not F32 {list(tensor.held)}")
                self._parts.setdefault(name, []).append(_Part(*span(tensor), path, info.start))

    @classmethod
    def of(cls, paths: Iterable[Path], entries: Iterable[FileEntry]) -> "LocalTensors":
        """The tensors of local copies of a manifest's files, in the same order."""
        return cls([(path, entry.tensors) for path, entry in zip(paths, entries, strict=True)])

    def read(self, name: str, start: int, out: Float32) -> None:
        """Fill a flat array with a tensor's elements from number `start` on.

        Raises:
            CorruptFile: a file has become shorter.
        """
        for part in self._parts[name]:
            first, last = max(start, part.start), min(start + len(out), part.end)
            if first < last:
                place = part.place + ITEM * (first - part.start)
                values = np.fromfile(part.path, "<f4", last - first, offset=place)
                if len(values) < last - first:
                    raise CorruptFile(f"{part.path} has become shorter than its header says")
                out[first - start : last - start] = values

    def chunks(self, name: str, elements: int) -> Iterator[Float32]:
        """A tensor's elements, flat, in arrays of at most `elements`."""
        size = math.prod(self.tensors[name].shape)
        for start in range(0, size, elements):
            out = np.empty(min(elements, size - start), np.float32)
            self.read(name, start, out)
            yield out

    def array(self, name: str) -> Float32:
        """A whole tensor."""
        out = np.empty(self.tensors[name].shape, np.float32)
        self.read(name, 0, out.reshape(-1))
        return out


class _Part(NamedTuple):
    """A file with elements `start` to `end` of a tensor, from byte `place` on."""

    start: int
    end: int
    path: Path
    place: int


def regroup(
    files: Iterable[Path], groups: Mapping[str, Iterable[str]], folder: Path, max_bytes: int = SHARD_BYTES
) -> list[FileEntry]:
    """Write the tensors of local files that Photon wrote to new files, each of which holds one group.

    Args:
        files: paths of files of float32 tensors.
        groups: start of the new files' names -> the tensors of one group.
        folder: folder for the new files; the entries' paths are relative to it.
        max_bytes: maximum size of a new file; a larger tensor is split by rows.

    Raises:
        CorruptFile: a file is not a safetensors file of float32 tensors.
    """
    found = LocalTensors([(path, tensors_of(path)) for path in files])
    entries: list[FileEntry] = []
    for stem, names in groups.items():
        own = {name: found.tensors[name] for name in names}
        entries += write_shards(folder, stem, own, max_bytes, found.array)
    return entries
