"""Reading Photon's MDS shards with NumPy alone: without streaming, torch and shared memory.

Source of the layout: streaming/base/format/mds/writer.py, `MDSWriter.encode_joint_shard`: number of samples
and offsets as uint32, the columns as JSON, then the samples. Photon's columns (id, tokens) have fixed sizes, so
the samples of a shard are one array.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import DataError

DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class Shard:
    """One shard of a split, as the index describes it."""

    path: Path
    raw_bytes: int
    raw_sha256: str
    samples: int
    dtype: str
    sequence_length: int

    @property
    def raw_path(self) -> Path:
        """Path of streaming's decompressed copy, beside the compressed file."""
        return self.path.with_suffix("")


def read_index(folder: Path) -> list[Shard]:
    """The shards of a split, in order.

    Raises:
        DataError: index.json is missing, damaged, or describes other columns than Photon's.
    """
    path = folder / "index.json"
    try:
        shards = json.loads(path.read_bytes())["shards"]
        return [_shard(folder, info) for info in shards]
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; run photon prepare again") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: not an index of Photon's shards ({error!r}); run photon prepare again"
        ) from error


def read_shard(shard: Shard) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """A shard's ids, shape (samples,), and tokens, shape (samples, sequence length), uint16 or uint32.

    Raises:
        DataError: the file is missing, cannot be decompressed, or has another length than in the index.
    """
    import zstandard

    try:
        packed = shard.path.read_bytes()
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=shard.raw_bytes)
    except (OSError, zstandard.ZstdError) as error:
        raise DataError(f"{shard.path}: cannot be read ({error}); run photon prepare again") from error
    row = np.dtype([("id", "<u4"), ("tokens", DTYPES[shard.dtype], (shard.sequence_length,))])
    start = len(raw) - row.itemsize * shard.samples
    # the header gives the start of the samples; everything else follows from their fixed size
    head = np.frombuffer(raw, "<u4", count=min(2, len(raw) // 4)).tolist()
    if len(raw) != shard.raw_bytes or head != [shard.samples, start]:
        raise DataError(f"{shard.path}: is not the shard that index.json describes; run photon prepare again")
    rows = np.frombuffer(raw, dtype=row, count=shard.samples, offset=start)
    return rows["id"], rows["tokens"]


def _shard(folder: Path, info: dict[str, Any]) -> Shard:
    columns = dict(zip(info["column_names"], info["column_encodings"], strict=True))
    kind, dtype, length = columns["tokens"].split(":")
    if list(columns) != ["id", "tokens"] or kind != "ndarray" or columns["id"] != "uint32" or dtype not in DTYPES:
        raise ValueError(f"columns {columns}")
    name = info["zip_data"]["basename"]
    if Path(name).name != name:
        raise ValueError(f"file name {name!r}")
    return Shard(
        path=folder / name,
        raw_bytes=int(info["raw_data"]["bytes"]),
        raw_sha256=str(info["raw_data"]["hashes"]["sha256"]),
        samples=int(info["samples"]),
        dtype=dtype,
        sequence_length=int(length),
    )
