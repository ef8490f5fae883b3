"""The safetensors container: its header, read, checked and written.

A file is an 8-byte little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, and
the tensors' bytes, without gaps (https://github.com/huggingface/safetensors, "Format"). Headers come from
other sites. So they are read with limits, and every number in them is checked before it is used.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from photon_core.errors import CorruptFile
from photon_core.store.store import Store
from schemas.manifests import TensorEntry

DTYPE_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
NUMPY_DTYPES = {"F32": "<f4", "I32": "<i4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "I8": "|i1", "U8": "|u1"}
SENT_AS = {"float32": "F32", "bfloat16": "BF16"}  # keys: names in the federation file
HEADER_LIMIT = 8 << 20  # bytes; a 256 MiB shard's header is some kB


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes are: from `start` to `end` of its file, counted from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int


def read_header(
    store: Store, path: str, file_bytes: int, limit: int = HEADER_LIMIT
) -> tuple[bytes, dict[str, TensorInfo]]:
    """A safetensors file's header: its raw bytes (with the length) and the tensors, in the order of the data.

    Args:
        store, path: store and path of the file.
        file_bytes: file size, from the manifest.
        limit: maximum bytes of the header.

    Raises:
        CorruptFile: the file is missing, or its header is invalid for a file of this size.
    """
    try:
        head = store.read_range(path, 0, 8)
        length = header_length(head, file_bytes, store.locate(path), limit)
        body = store.read_range(path, 8, 8 + length)
    except FileNotFoundError:
        raise CorruptFile(f"{store.locate(path)} is missing, although a manifest covers it") from None
    return head + body, parse_header(body, 8 + length, file_bytes, store.locate(path))


def read_local_header(path: Path) -> tuple[bytes, dict[str, TensorInfo]]:
    """The header of a file on this machine: its JSON, and the tensors in the order of the data.

    Raises:
        CorruptFile: it is missing, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(8), size, str(path))
            body = file.read(length)
    except FileNotFoundError:
        raise CorruptFile(f"{path} is missing") from None
    return body, parse_header(body, 8 + length, size, str(path))


def tensors_of(path: Path) -> dict[str, TensorEntry]:
    """Manifest entries of the tensors in a local file that Photon wrote, in the order of the data.

    Raises:
        CorruptFile: it is missing, or not a safetensors file.
    """
    body, infos = read_local_header(path)
    rows = json.loads(json.loads(body).get("__metadata__", {}).get("rows", "{}"))
    tensors = {}
    for name, info in infos.items():
        tensors[name] = TensorEntry(dtype=info.dtype, shape=info.shape)
        if name in rows:
            start, end, count = rows[name]
            tensors[name] = TensorEntry(dtype=info.dtype, shape=(count, *info.shape[1:]), rows=(start, end))
    return tensors


def header_limit(names: Iterable[str]) -> int:
    """Maximum bytes of a header of tensors with these names. It leaves room for escaped names and metadata."""
    return min(HEADER_LIMIT, 65536 + sum(512 + 6 * len(name) for name in names))


def header_length(head: bytes, file_bytes: int, file: str, limit: int = HEADER_LIMIT) -> int:
    """The JSON's length, from a file's first 8 bytes.

    Raises:
        CorruptFile: the length is impossible for the file's size, or exceeds the limit.
    """
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= min(limit, file_bytes - 8):
        raise CorruptFile(
            f"{file} is not a safetensors file of {file_bytes} bytes: its header claims {length} bytes"
        )
    return length


def parse_header(body: bytes, data_start: int, file_bytes: int, file: str) -> dict[str, TensorInfo]:
    """The tensors that a header's JSON describes, in the order of the data.

    Args:
        body: JSON of the header.
        data_start: offset of the first tensor's first byte in the file.
        file_bytes: size of the file; the tensors must fill it exactly.
        file: name for messages.

    Raises:
        CorruptFile: anything in it violates the format.
    """
    try:
        entries = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{file}: the header is not JSON: {str(error)[:200]}") from None
    if not isinstance(entries, dict):
        raise CorruptFile(f"{file}: the header is not a mapping of tensors")
    entries.pop("__metadata__", None)
    infos = [_info(name, entry, data_start, file) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    position = data_start
    for info in infos:
        if info.start != position:
            raise CorruptFile(f"{file}: tensor '{info.name}' starts at byte {info.start}, not at {position}")
        position = info.end
    if position != file_bytes:
        raise CorruptFile(f"{file}: the tensors end at byte {position}, but the file has {file_bytes}")
    return {info.name: info for info in infos}


def make_header(tensors: Mapping[str, TensorEntry]) -> bytes:
    """The header, with its length, of a file that holds these tensors in this order."""
    entries: dict[str, Any] = {"__metadata__": make_metadata(tensors)}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor_bytes(tensor)
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.held), "data_offsets": [position, end]}
        position = end
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)  # the data starts at a multiple of 8
    return len(body).to_bytes(8, "little") + body


def make_metadata(tensors: Mapping[str, TensorEntry]) -> dict[str, str]:
    """A file's `__metadata__`: for a split tensor its first row here, the row after its last, and all rows."""
    rows = {name: [*tensor.rows, tensor.shape[0]] for name, tensor in tensors.items() if tensor.rows}
    return {"format": "pt"} | ({"rows": json.dumps(rows, separators=(",", ":"))} if rows else {})


def tensor_bytes(tensor: TensorEntry) -> int:
    """Bytes of the part of a tensor that the file holds."""
    return math.prod(tensor.held) * DTYPE_BYTES[tensor.dtype]


def check_held(promised: Mapping[str, TensorEntry], infos: Mapping[str, TensorInfo], file: str) -> None:
    """Compare a file's header with its manifest.

    Raises:
        CorruptFile: the header describes other tensors than the manifest.
    """
    expected = {name: (tensor.dtype, tensor.held) for name, tensor in promised.items()}
    if {info.name: (info.dtype, info.shape) for info in infos.values()} != expected:
        raise CorruptFile(f"{file} holds other tensors than its manifest says")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name occurs twice")
    return mapping


def _info(name: str, entry: Any, data_start: int, file: str) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CorruptFile(f"{file}: tensor '{name[:200]}' is not described by a mapping")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CorruptFile(f"{file}: tensor '{name[:200]}' has an unknown dtype {str(dtype)[:40]!r}")
    if not _sizes(shape) or len(shape) > 16:
        raise CorruptFile(f"{file}: tensor '{name[:200]}' has an impossible shape")
    if not _sizes(offsets) or len(offsets) != 2:
        raise CorruptFile(f"{file}: tensor '{name[:200]}' has impossible data_offsets")
    start, end = offsets
    if end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise CorruptFile(f"{file}: tensor '{name[:200]}' {dtype} {shape} does not fill bytes {start} to {end}")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + end)


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of integers that can be sizes (bool is a subclass of int, and not accepted)."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)
