"""PartitionStream: parts are disjoint, complete and even, and known by the site's own numbers."""

from pathlib import Path

import numpy as np
import pytest

from photon_core.data.mds import read_index, read_shard
from photon_core.data.partition import deal, partition, site_numbers
from photon_core.errors import DataError
from schemas.sections.hardware import Hardware
from schemas.view import SiteView, view_of
from tests.photon_core.training.conftest import make_federation, write_site


@pytest.mark.parametrize("nodes", [2, 3, 5])
@pytest.mark.parametrize("counts", [[17], [4, 4, 4], [10, 1, 7, 3, 9], [6] * 40, [1] * 5])
def test_every_sample_goes_to_one_node_and_parts_are_even(counts: list[int], nodes: int) -> None:
    dealt = deal(counts, nodes)
    seen = [(p.shard, n) for pieces in dealt for p in pieces for n in range(p.start, p.stop)]
    assert len(seen) == len(set(seen))
    assert set(seen) == {(shard, n) for shard, count in enumerate(counts) for n in range(count)}
    sizes = [sum(p.stop - p.start for p in pieces) for pieces in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert sum(len(pieces) for pieces in dealt) <= len(counts) + nodes - 1
    for pieces in dealt:
        assert pieces == sorted(pieces, key=lambda p: (p.shard, p.start))


def test_whole_shards_go_round() -> None:
    assert [[p.shard for p in pieces] for pieces in deal([6] * 6, 3)] == [[0, 3], [1, 4], [2, 5]]


def make(folder: Path, sequences: int) -> SiteView:
    federation = make_federation(folder, streams=("news", "code"))
    write_site(federation, "alpha", sequences)
    site = federation.sites[0].model_copy(update={"hardware": Hardware(nodes=3, tflops=1, interconnect=1)})
    return view_of(federation.model_copy(update={"sites": [site]}), "alpha")


def rows(view: SiteView, stream: str) -> tuple[list[int], np.ndarray]:
    read = [read_shard(shard) for shard in read_index(view.split_dir(stream, "train"))]
    return [int(i) for ids, _ in read for i in ids], np.concatenate([tokens for _, tokens in read])


def test_the_nodes_folders_hold_the_sites_samples(tmp_path: Path) -> None:
    view = make(tmp_path, 500)
    partition(view, 3)
    links = 0
    for s, stream in enumerate(("news", "code")):
        ids, tokens = rows(view, stream)
        found = []
        start = [0, 0, 0]
        for node in (1, 2, 3):
            part = view.node(node)
            start[node - 1] = len(rows(part, "news")[0]) if s else 0
            part_ids, part_tokens = rows(part, stream)
            assert np.array_equal(part_tokens, tokens[part_ids])
            numbers = site_numbers(view, 3, node, np.arange(len(part_ids)) + start[node - 1])
            assert (numbers - s * len(ids)).tolist() == part_ids
            found += part_ids
            files = part.split_dir(stream, "train").glob("*.zstd")
            links += sum(path.stat().st_nlink > 1 for path in files)
        assert sorted(found) == ids
    assert links > 4, "shards that are not cut take no space"


def test_it_is_cut_again_when_the_data_change_and_only_then(tmp_path: Path) -> None:
    view = make(tmp_path, 30)
    partition(view, 3)
    manifest = view.node(2).state_dir / "data" / "data.json"
    first = manifest.stat().st_mtime_ns
    partition(view, 3)
    assert manifest.stat().st_mtime_ns == first
    partition(make(tmp_path, 40), 3)
    assert manifest.stat().st_mtime_ns != first
    with pytest.raises(DataError, match=r"stream 'news': 40 sequences are too few for 41 nodes"):
        partition(view, 41)


def test_what_is_not_ours_in_a_nodes_folder_stays_when_it_is_cut_again(tmp_path: Path) -> None:
    view = make(tmp_path, 100)
    folder = view.node(2).state_dir
    mine = [folder / name for name in ("data/mine.txt", "data/news/mine.txt", "mine.txt")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for sequences in (100, 160):
        write_site(view.federation, "alpha", sequences)
        partition(view, 3)
        assert [path.read_text() for path in mine] == ["mine"] * 3
        assert len(rows(view.node(2), "news")[0]) in (sequences // 3, sequences // 3 + 1)
