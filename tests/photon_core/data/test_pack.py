"""Packing and the split by document."""

import numpy as np
import pytest

from photon_core.data.features import text_hash
from photon_core.data.pack import split_bound
from photon_core.errors import DataError


def test_share_of_documents_is_held_out() -> None:
    hashes = np.unique(np.array([text_hash(str(i).encode(), 17) for i in range(20_000)], np.uint64))
    held_out = int((hashes < np.uint64(split_bound(hashes, 0.05, "x"))).sum())
    assert held_out / 20_000 == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("texts", [2, 3, 7])
def test_each_split_has_a_document(share: float, texts: int) -> None:
    hashes = np.unique(np.array([text_hash(str(i).encode(), 1) for i in range(texts)], np.uint64))
    bound = split_bound(hashes, share, "x")
    held_out = sum(int(h) < bound for h in hashes)
    assert 1 <= held_out <= texts - 1


@pytest.mark.parametrize("texts", [0, 1])
def test_fewer_than_two_texts_cannot_be_split(texts: int) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: a stream needs two distinct documents"):
        split_bound(np.arange(texts, dtype=np.uint64), 0.5, "a.jsonl")


def test_split_depends_on_the_seed() -> None:
    assert text_hash(b"text", 1) != text_hash(b"text", 2)
    assert text_hash(b"text", 1) == text_hash(b"text", 1) < 2**64
