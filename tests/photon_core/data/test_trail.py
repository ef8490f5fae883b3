"""Numbers of samples, as training notes them: one for each sample of a site, however many streams it has."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from photon_core.data.mds import read_index, read_shard
from photon_core.data.paths import split_dir
from photon_core.data.prepare import prepare_site
from photon_core.data.stream import release, train_dataset
from photon_core.data.trail import locate
from photon_core.errors import DataError
from schemas.federation import Federation


def test_each_sample_of_two_streams_has_a_number_of_its_own(
    tmp_path: Path,
    make_federation: Callable[..., Federation],
    library_texts: Callable[..., list[str]],
    write_jsonl: Callable[..., Path],
) -> None:
    sources = {
        name: str(write_jsonl(tmp_path / f"{name}.jsonl", library_texts(module)))
        for name, module in (("b", "socket"), ("a", "queue"))  # the file's order, not the alphabet's
    }
    federation = make_federation(sources)
    prepare_site(federation, "s")
    rows = {}
    for name in sources:
        for shard in read_index(split_dir(federation, "s", name, "train")):
            ids, tokens = read_shard(shard)
            rows.update({(name, int(number)): row for number, row in zip(ids, tokens, strict=True)})

    dataset = train_dataset(federation, "s", seed=3)
    seen = {number: dataset[number] for number in range(len(rows))}
    trained = [sample["id"] for sample in dataset]
    release(dataset)

    places = locate(federation, "s", list(seen))
    assert sorted(places) == sorted(rows)
    for place, (number, sample) in zip(places, seen.items(), strict=True):
        assert sample["id"] == number
        assert np.array_equal(sample["tokens"], rows[place])
    assert set(trained) <= set(seen) and {name for name, _ in locate(federation, "s", trained)} == {"a", "b"}
    for wrong in (-1, len(rows)):
        with pytest.raises(DataError, match=f"none is number {wrong}"):
            locate(federation, "s", [wrong])
