"""Shards, the safetensors files that together hold a model: the plan of their tensors, writing, uploading."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import CorruptFile, PhotonError, StoreConflict
from photon_core.hashing import Hashes, file_hashes
from photon_core.store.store import SHA256, Store, check_path
from photon_core.tensors.container import header_limit, make_header, tensor_bytes, tensors_of
from schemas.manifests import FileEntry, TensorEntry

LEAST_SHARD = 1 << 20  # bytes; aggregation.shard_mib is 1 or more

SHARD_BYTES = 256 << 20
SUFFIX = re.compile(r"-[0-9a-f]{8,16}$")  # the part of a file's name that is unique to its writer
WRITE = 1 << 18  # bytes that are written at once and hashed while they are in a core's cache


def put_file(
    store: Store, path: Path, folder: str, prefix: str = "", entry: FileEntry | None = None, stem: str = ""
) -> FileEntry:
    """Upload a file, unless the store has it. The name holds the hash, so the same bytes are uploaded once.

    Args:
        path: local path of the finished file.
        folder: target folder in the store.
        prefix: path of `folder` relative to the manifest, with a trailing slash.
        entry: known entry of the file; by default it is read from the file. If the file has changed since then,
            every reader of the uploaded file raises CorruptFile.
        stem: start of the file's name in the store; by default that of the local file.

    Raises:
        CorruptFile: the store has a file of that name with another size.
    """
    entry = entry or file_entry(path, "")
    name = f"{stem or path.stem}-{entry.sha256[:16]}.safetensors"
    place = f"{folder}/{name}"
    try:
        size = store.size(place)
    except FileNotFoundError:
        try:
            store.put(path, place)
        except StoreConflict:
            pass  # the same bytes, from another process of this site
        size = store.size(place)
    if size != entry.bytes:
        raise CorruptFile(f"{store.locate(place)} holds {size} bytes; {entry.bytes} are expected. Remove it")
    return entry.model_copy(update={"path": prefix + name})


def copy_files(
    source: Store, folder: str, entries: Sequence[FileEntry], target: Store, to: str, prefix: str = ""
) -> list[FileEntry]:
    """Copy a manifest's files to another folder or another store, one at a time, and verify them.

    Args:
        source, folder: store of the files, and their manifest's folder in it.
        entries: manifest entries of the files.
        target, to: store and folder of the copies.
        prefix: path of `to` relative to the new manifest, with a trailing slash.

    Raises:
        CorruptFile: a file is not the one that its entry describes.
    """
    copies = []
    for entry in entries:
        stem = SUFFIX.sub("", PurePosixPath(entry.path).stem)
        with TemporaryDirectory(prefix="photon-copy-") as scratch:
            path = source.fetch(entry, folder, Path(scratch))
            copies.append(put_file(target, path, to, prefix, entry, stem))
    return copies


def write_shard(
    path: Path, name: str, shard: Mapping[str, TensorEntry], tensor: Callable[[str], NDArray[Any]]
) -> FileEntry:
    """Write a file of a plan, and hash it while writing.

    Args:
        path: local path of the new file.
        name: path in the manifest.
        shard: tensors of the file by name.
        tensor: function that returns a whole tensor, in the bits of its dtype; called in the shard's order.
    """
    header = make_header(shard)
    hashes, size = Hashes().update(header), len(header)
    with path.open("wb") as file:
        file.write(header)
        for each, part in shard.items():
            values = tensor(each) if part.rows is None else tensor(each)[slice(*part.rows)]
            data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            for start in range(0, data.size, WRITE):
                file.write(data[start : start + WRITE].data)
                hashes.update(data[start : start + WRITE].data)
            size += data.size
    sha256, blake3 = hashes.hexdigests()
    return FileEntry(path=name, sha256=sha256, blake3=blake3, bytes=size, tensors=dict(shard))


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, TensorEntry],
    max_bytes: int,
    tensor: Callable[[str], NDArray[Any]],
) -> Iterator[FileEntry]:
    """Write tensors as files <stem>00001-of-00003.safetensors and so on; each is yielded when it is finished.

    Args:
        folder: parent folder of the files; the entries' paths are relative to it.
        stem: start of the files' paths; a folder in it exists.
        tensors: tensors to write.
        max_bytes: maximum size of a file; a larger tensor is split by rows.
        tensor: function that returns a whole tensor, in the bits of its dtype; called once for each, sorted.
    """
    last: dict[str, NDArray[Any]] = {}  # a tensor in several files is computed once

    def whole(name: str) -> NDArray[Any]:
        if name not in last:
            last.clear()
            last[name] = tensor(name)
        return last[name]

    plan = shard_plan(tensors, max_bytes)
    for number, shard in enumerate(plan, 1):
        path = f"{stem}{number:05d}-of-{len(plan):05d}.safetensors"
        yield write_shard(folder / path, path, shard, whole)


def shard_plan(
    tensors: Mapping[str, TensorEntry], max_bytes: int = SHARD_BYTES, align: int = 1
) -> list[dict[str, TensorEntry]]:
    """The tensors of each file: sorted names, filled greedily. A tensor larger than a file is split by rows.

    Args:
        tensors: whole tensors by name.
        max_bytes: maximum file size without the header; a file of the fewest aligned rows may exceed it.
        align: number of elements at whose multiples tensors may be split.
    """
    plan: list[dict[str, TensorEntry]] = []
    filled = 0
    for name in sorted(tensors):
        for part in _parts(tensors[name], max_bytes, align):
            size = tensor_bytes(part)
            if not plan or (filled and filled + size > max_bytes):
                plan.append({})
                filled = 0
            plan[-1][name] = part
            filled += size
    return plan


def _parts(tensor: TensorEntry, max_bytes: int, align: int) -> list[TensorEntry]:
    """The tensor, or its rows in parts of at most `max_bytes`. Two neighbouring parts never fit into one file."""
    size = tensor_bytes(tensor)
    if size <= max_bytes or not tensor.shape or tensor.shape[0] == 1:
        return [tensor]
    count = tensor.shape[0]
    step = align // math.gcd(align, math.prod(tensor.shape[1:]))
    rows = max(step, max_bytes * count // size // step * step)
    if rows >= count:
        return [tensor]
    bounds = [*range(0, count, rows), count]
    return [
        TensorEntry(dtype=tensor.dtype, shape=tensor.shape, rows=(start, end)) for start, end in pairwise(bounds)
    ]


def file_entry(path: Path, name: str) -> FileEntry:
    """The manifest entry of a local safetensors file that Photon has written.

    Args:
        path: local path of the file.
        name: path in the manifest.

    Raises:
        CorruptFile: the file is not a safetensors file.
    """
    tensors = tensors_of(path)
    sha256, blake3 = file_hashes(path)
    return FileEntry(path=name, sha256=sha256, blake3=blake3, bytes=path.stat().st_size, tensors=tensors)


def all_tensors(entries: Sequence[FileEntry]) -> dict[str, TensorEntry]:
    """The whole tensors of a list of files, by name.

    Raises:
        CorruptFile: two files hold the same tensor, or the parts of a split tensor are incomplete or out of order.
    """
    return whole_tensors((entry.path, entry.tensors) for entry in entries)


def whole_tensors(files: Iterable[tuple[str, Mapping[str, TensorEntry]]]) -> dict[str, TensorEntry]:
    """`all_tensors` of files by name, each with its tensors."""
    whole: dict[str, TensorEntry] = {}
    reached: dict[str, int] = {}  # rows of the split tensors so far
    for path, tensors in files:
        for name, tensor in tensors.items():
            if name in whole and (tensor.rows is None or name not in reached):
                raise CorruptFile(f"tensor '{name[:200]}' is in two files, one of them '{path[:200]}'")
            if tensor.rows is None:
                whole[name] = tensor
                continue
            one = TensorEntry(dtype=tensor.dtype, shape=tensor.shape)
            start, end = tensor.rows
            if whole.setdefault(name, one) != one or reached.get(name, 0) != start or end <= start:
                raise CorruptFile(f"the rows of tensor '{name[:200]}' in '{path[:200]}' are not the next ones")
            reached[name] = end
    for name, end in reached.items():
        if whole[name].shape[:1] != (end,):
            raise CorruptFile(f"the files do not hold all rows of tensor '{name[:200]}'")
    return whole


def check_files(entries: Sequence[FileEntry], pieces: int) -> None:
    """Refuse files that cannot be an update's, before a byte of them is read.

    Args:
        entries: manifest entries, whose tensors are known to be the model's.
        pieces: maximum number of files that the tensors can fill, however small the files are.

    Raises:
        PhotonError: a file's size, path or hash is impossible, or there are too many files.
    """
    size = sum(tensor_bytes(tensor) for entry in entries for tensor in entry.tensors.values())
    if len(entries) > (most := pieces + size // LEAST_SHARD):
        raise PhotonError(f"it has {len(entries)} files; its tensors fill at most {most}")
    for entry in entries:
        check_path(entry.path)
        if not all(SHA256.fullmatch(digest) for digest in (entry.sha256, entry.blake3 or entry.sha256)):
            raise PhotonError(f"file '{entry.path}' has no sha256 or blake3")
        held = sum(tensor_bytes(tensor) for tensor in entry.tensors.values())
        if not held <= entry.bytes <= 8 + header_limit(entry.tensors) + held:
            raise PhotonError(f"file '{entry.path}' has {entry.bytes} bytes, but its tensors have {held}")
