"""The safetensors container: agreement with the library that defines it, and hostile headers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.errors import CorruptFile
from photon_core.hashing import sha256_file
from photon_core.store.store import Store
from photon_core.tensors.container import HEADER_LIMIT, header_length, make_header, parse_header, read_header
from photon_core.tensors.shards import all_tensors, file_entry, shard_plan
from schemas.manifests import FileEntry, TensorEntry


def f32(*shape: int) -> TensorEntry:
    return TensorEntry(dtype="F32", shape=shape)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.int32([7]),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"by": "the library"})
    entry = file_entry(tmp_path / "x.safetensors", "model/x.safetensors")
    assert entry.tensors == {
        "b": f32(2, 3),
        "a": TensorEntry(dtype="I32", shape=(1,)),
        "scalar": f32(),
        "empty": f32(0, 4),
    }
    assert entry.path == "model/x.safetensors"
    assert entry.sha256 == sha256_file(tmp_path / "x.safetensors")
    _, infos = read_header(Store(str(tmp_path)), "x.safetensors", entry.bytes)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert data[infos["b"].start : infos["b"].end] == tensors["b"].tobytes()


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    header = make_header({"a": f32(2), "é": f32(), "none": f32(0)})
    assert len(header) % 8 == 0
    (tmp_path / "x.safetensors").write_bytes(header + np.float32([1, 2, 3]).tobytes())
    found = load_file(tmp_path / "x.safetensors")
    assert found["a"].tolist() == [1, 2]
    assert found["é"].tolist() == 3
    assert found["none"].shape == (0,)


def test_golden_header() -> None:
    body = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    assert make_header({"w": f32(2, 3)}) == len(body).to_bytes(8, "little") + body


def test_plan_fills_shards_in_the_order_of_names() -> None:
    tensors = {"d": f32(1), "a": f32(2), "c": f32(10), "b": f32(2), "e": f32(0), "f": f32(3)}
    assert [list(shard) for shard in shard_plan(tensors, 40)] == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert [list(shard) for shard in shard_plan(tensors, 1 << 20)] == [["a", "b", "c", "d", "e", "f"]]
    assert shard_plan({}) == []


def test_a_name_in_two_files_is_refused() -> None:
    entries = [FileEntry(path=p, sha256="0" * 64, bytes=1, tensors={"w": f32(1)}) for p in ("x", "y")]
    with pytest.raises(CorruptFile, match="'w' is in two files"):
        all_tensors(entries)


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "not JSON": b"{nope",
    "not text": b"\xff\xfe{}",
    "not a mapping": b"[]",
    "deep": b"[" * 100_000,
    "twice": b'{"w":' + json.dumps(TENSOR).encode() + b',"w":' + json.dumps(TENSOR).encode() + b"}",
    "tensor is a list": json.dumps({"w": []}).encode(),
    **{
        name: json.dumps({"w": {**TENSOR, **change}}).encode()
        for name, change in {
            "unknown dtype": {"dtype": "F99"},
            "dtype a list": {"dtype": ["F32"]},
            "negative shape": {"shape": [-2]},
            "shape of floats": {"shape": [2.0]},
            "shape of booleans": {"shape": [True]},
            "huge shape": {"shape": [2**62]},
            "overflowing shape": {"shape": [2**32, 2**32]},
            "endless digits": {"shape": [10**4000]},
            "too many axes": {"shape": [1] * 17 + [2]},
            "wrong size": {"shape": [3]},
            "gap": {"data_offsets": [4, 12]},
            "backwards": {"data_offsets": [8, 0]},
            "three offsets": {"data_offsets": [0, 8, 8]},
            "no offsets": {"data_offsets": None},
            "short of the end": {"data_offsets": [0, 4], "shape": [1]},
        }.items()
    },
    "overlap": json.dumps({"v": TENSOR, "w": TENSOR}).encode(),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused(body: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"^evil\.safetensors: "):
        parse_header(body, 100, 108, "evil.safetensors")


@pytest.mark.parametrize("length", [0, 1, HEADER_LIMIT + 1, 2**63, 993])
def test_header_lengths_are_bounded(length: int) -> None:
    with pytest.raises(CorruptFile, match="its header claims"):
        header_length(length.to_bytes(8, "little"), 1000, "x")
    with pytest.raises(CorruptFile):
        header_length(b"abc", 1000, "x")


def test_damaged_headers_are_refused_or_still_fit() -> None:
    header = make_header({"w": f32(2, 3), "v": f32(4), "u": f32()})
    size = len(header) + 44
    random.seed(0)
    for _ in range(3000):
        damaged = bytearray(header)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(damaged))] = random.choice(b'0123456789{}[],:"aF' + bytes([0, 255]))
        try:
            length = header_length(bytes(damaged[:8]), size, "x")
            infos = parse_header(bytes(damaged[8 : 8 + length]), 8 + length, size, "x")
        except CorruptFile:
            continue
        position = 8 + length
        for info in infos.values():
            assert info.start == position
            position = info.end
        assert position == size


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"model/x\.safetensors is missing"):
        read_header(Store(str(tmp_path)), "model/x.safetensors", 100)
