"""PartitionStream (Photon, Algorithm 1): a site's prepared streams cut into disjoint, complete parts, one a node.

    <state_dir>/nodes/2/data/<stream>/train/   node 2's part: whole shards are links to the site's, pieces copies
    <state_dir>/nodes/2/data/data.json         written last; its settings_sha256 covers the site's data

A node's folder has the layout of a site's, so that the code that trains a site trains a node. Held-out text is not
cut, because the site evaluates.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.data.held_out import even_shares
from photon_core.data.manifest import NAME, data_sha256, require_manifest
from photon_core.data.mds import read_index, read_shard
from photon_core.data.record import file_entries
from photon_core.data.replace import claim, empty_stream, finish, replace
from photon_core.errors import DataError
from photon_core.hashing import canonical_json, sha256_bytes
from schemas.manifests import DataManifest, StreamData
from schemas.view import SiteView

FORMAT = 1  # of the parts below; with a new format every site is cut again


@dataclass(frozen=True)
class Piece:
    """Samples `start` to `stop` (exclusive) of a stream's shard number `shard`."""

    shard: int
    start: int
    stop: int


def deal(counts: list[int], nodes: int) -> list[list[Piece]]:
    """Deal a stream's shards to the nodes in turn, with few cuts; parts differ by at most one sample.

    Neighbouring text goes to different nodes as far as shards allow. At most nodes - 1 shards are cut.

    Args:
        counts: number of samples of each shard.
        nodes: number of nodes.

    Returns:
        The pieces of each node, in the stream's order; together every sample once.
    """
    total = sum(counts)
    left = even_shares([total] * nodes, total)
    pieces: list[list[Piece]] = [[] for _ in range(nodes)]
    node = 0
    for shard, count in enumerate(counts):
        start = 0
        while start < count:
            while not left[node]:
                node = (node + 1) % nodes
            stop = min(count, start + left[node])
            pieces[node].append(Piece(shard, start, stop))
            left[node] -= stop - start
            start, node = stop, (node + 1) % nodes
    return pieces


def partition(view: SiteView, nodes: int) -> None:
    """Write every node's part to the disk, unless it exists and was cut from the site's current data.

    Raises:
        DataError: the site is not prepared, or a stream has fewer sequences than there are nodes.
    """
    whole_sha256 = data_sha256(view)
    settings = [sha256_bytes(canonical_json([FORMAT, whole_sha256, nodes, i])) for i in range(nodes)]
    roots = [view.node(i + 1).data_dir for i in range(nodes)]
    for root in roots:
        claim(root)
        finish(root)
    missing = [i for i in range(nodes) if _settings(roots[i]) != settings[i]]
    entries: dict[int, dict[str, StreamData]] = {i: {} for i in missing}
    counts = dict.fromkeys(missing, 0)
    manifest = require_manifest(view)
    for stream in view.streams if missing else ():
        source = view.split_dir(stream.name, "train")
        dealt = _dealt(view, stream.name, nodes)
        for i in missing:
            part = empty_stream(roots[i], stream.name)
            _write(source, dealt[i], part / "train")
            counts[i] += sum(piece.stop - piece.start for piece in dealt[i])
            files = file_entries(part, stream.name, ("train",))
            whole = manifest.streams[stream.name]
            entries[i][stream.name] = whole.model_copy(update={"files": files})
    for i in missing:
        cut = manifest.model_copy(
            update={
                "streams": entries[i],
                "train_sequences": counts[i],
                "train_tokens": counts[i] * manifest.sequence_length,
                "valid_sequences": 0,
                "valid_tokens": 0,
                "settings_sha256": settings[i],
            }
        )
        replace(roots[i], cut.model_dump_json(indent=1).encode())


def site_numbers(view: SiteView, nodes: int, node: int, numbers: Any) -> NDArray[np.uint32]:
    """Convert a node's sample numbers into the site's (see training/callback.py).

    Args:
        view: site of the nodes.
        nodes, node: number of nodes, and the node's number from 1.
        numbers: sample numbers from the node's samples.u32.
    """
    table, start = [], 0
    for stream in view.streams:
        shards = read_index(view.split_dir(stream.name, "train"))
        offsets = start + np.cumsum([0, *(shard.samples for shard in shards)])
        for piece in deal([shard.samples for shard in shards], nodes)[node - 1]:
            table.append(np.arange(piece.start, piece.stop) + offsets[piece.shard])
        start = int(offsets[-1])
    return np.asarray(np.concatenate(table)[np.asarray(numbers)], "<u4")


def _settings(root: Path) -> str | None:
    try:
        return DataManifest.model_validate_json((root / NAME).read_bytes()).settings_sha256
    except (OSError, ValueError):
        return None


def _dealt(view: SiteView, stream: str, nodes: int) -> list[list[Piece]]:
    counts = [shard.samples for shard in read_index(view.split_dir(stream, "train"))]
    if sum(counts) < nodes:
        raise DataError(
            f"site '{view.name}', stream '{stream}': {sum(counts)} sequences are too few for {nodes} nodes; "
            "give the stream more text, or write fewer hardware.nodes"
        )
    return deal(counts, nodes)


def _write(source: Path, pieces: list[Piece], target: Path) -> None:
    """The MDS folder of one node's pieces of one stream."""
    target.mkdir(parents=True)
    index = json.loads((source / "index.json").read_bytes())
    shards = []
    for piece in pieces:
        info = index["shards"][piece.shard]
        if (piece.start, piece.stop) == (0, info["samples"]):
            _link(source / info["zip_data"]["basename"], target / info["zip_data"]["basename"])
            shards.append(info)
        else:
            shards += _cut(source, piece, target)
    (target / "index.json").write_bytes(canonical_json({**index, "shards": shards}))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _cut(source: Path, piece: Piece, target: Path) -> list[dict[str, Any]]:
    """Write a piece of a shard as a separate shard, and return its index entries."""
    from streaming import MDSWriter

    shard = read_index(source)[piece.shard]
    ids, tokens = read_shard(shard)
    folder = target / ".cut"
    columns = {"id": "uint32", "tokens": f"ndarray:{shard.dtype}:{shard.sequence_length}"}
    with MDSWriter(
        out=str(folder), columns=columns, compression="zstd", hashes=["sha256"], size_limit=None
    ) as writer:
        for number in range(piece.start, piece.stop):
            writer.write({"id": ids[number], "tokens": tokens[number]})
    infos: list[dict[str, Any]] = json.loads((folder / "index.json").read_bytes())["shards"]
    for info in infos:
        name = info["zip_data"]["basename"]
        for data in (info["raw_data"], info["zip_data"]):
            data["basename"] = f"part-{piece.shard:05d}-{piece.start}.{data['basename']}"
        (folder / name).rename(target / info["zip_data"]["basename"])
    (folder / "index.json").unlink()
    folder.rmdir()
    return infos
