"""Our reader of shards against streaming's own, and against damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.mds import read_index, read_shard
from photon_core.errors import DataError


def write(folder: Path, dtype: str, rows: np.ndarray, size_limit: int = 1 << 26, **columns: str) -> None:
    from streaming import MDSWriter

    columns = columns or {"id": "uint32", "tokens": f"ndarray:{dtype}:{rows.shape[1]}"}
    options: dict[str, Any] = {"compression": "zstd", "hashes": ["sha256"], "size_limit": size_limit}
    with MDSWriter(out=str(folder), columns=columns, **options) as writer:
        for i, row in enumerate(rows):
            writer.write({"id": i + 7, "tokens": row, "text": "x"})


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_reads_what_streaming_wrote(tmp_path: Path, dtype: str) -> None:
    rows = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (50, 33), dtype=dtype, endpoint=True)
    write(tmp_path / "a", dtype, rows, size_limit=2000)
    shards = read_index(tmp_path / "a")
    assert len(shards) > 1
    ids, tokens = zip(*(read_shard(shard) for shard in shards), strict=True)
    assert np.concatenate(ids).tolist() == list(range(7, 57))
    assert np.array_equal(np.concatenate(tokens), rows)
    assert {shard.sequence_length for shard in shards} == {33}


def test_streaming_reads_the_same(tmp_path: Path) -> None:
    from streaming.base.format.mds.reader import MDSReader

    rows = np.arange(40, dtype="uint16").reshape(5, 8)
    write(tmp_path / "a", "uint16", rows)
    (shard,) = read_index(tmp_path / "a")
    import zstandard

    raw = zstandard.ZstdDecompressor().decompress(shard.path.read_bytes(), max_output_size=shard.raw_bytes)
    shard.raw_path.write_bytes(raw)
    info = json.loads((tmp_path / "a" / "index.json").read_text())["shards"][0]
    reader = MDSReader.from_json(str(tmp_path / "a"), None, info)
    ids, tokens = read_shard(shard)
    for i in range(5):
        assert reader[i]["id"] == ids[i]
        assert np.array_equal(reader[i]["tokens"], tokens[i])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"index\.json: does not exist"),
        ("", r"index\.json: not an index of Photon's shards"),
        ("{}", "not an index of Photon's shards"),
        ('{"shards": [{}]}', "not an index of Photon's shards"),
        ('{"shards": 3}', "not an index of Photon's shards"),
    ],
)
def test_damaged_index_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_index(tmp_path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    rows = np.zeros((2, 4), "uint16")
    write(tmp_path / "a", "uint16", rows, id="uint32", text="str", tokens="ndarray:uint16:4")
    with pytest.raises(DataError, match="not an index of Photon's shards"):
        read_index(tmp_path / "a")


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", "uint16", np.zeros((2, 4), "uint16"))
    index = tmp_path / "a" / "index.json"
    index.write_text(index.read_text().replace("shard.00000.mds.zstd", "../shard.00000.mds.zstd"))
    with pytest.raises(DataError, match="not an index of Photon's shards"):
        read_index(tmp_path / "a")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", "uint16", np.zeros((20, 40), "uint16"))
    (shard,) = read_index(tmp_path / "a")
    content = shard.path.read_bytes()
    for bad in (content[:-2], b"", content[:4] + b"\xff" * (len(content) - 4)):
        shard.path.write_bytes(bad)
        with pytest.raises(DataError, match=r"shard\.00000\.mds\.zstd: "):
            read_shard(shard)


def test_shard_of_another_index_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a", "uint16", np.zeros((20, 40), "uint16"))
    write(tmp_path / "b", "uint16", np.zeros((40, 20), "uint16"))
    (a,), (b,) = read_index(tmp_path / "a"), read_index(tmp_path / "b")
    a.path.write_bytes(b.path.read_bytes())
    with pytest.raises(DataError, match=r"is not the shard that index\.json describes|cannot be read"):
        read_shard(a)
