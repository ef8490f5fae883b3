"""Sampling is uniform, without replacement, and the same everywhere."""

from collections import Counter
from itertools import combinations

import pytest

from photon_core.sampling import sample_sites

SITES = ["a", "b", "c", "d"]


def test_all_sites_when_k_is_p():
    assert sample_sites(["d", "b", "a", "c"], 4, seed=1, t=1) == SITES


def test_same_inputs_same_sites_whatever_the_order():
    assert sample_sites(SITES, 2, 7, 3) == sample_sites(SITES[::-1], 2, 7, 3)


def test_every_pair_is_equally_likely():
    draws = Counter(tuple(sample_sites(SITES, 2, 17, t)) for t in range(6000))
    assert set(draws) == set(combinations(SITES, 2))
    assert all(abs(n - 1000) < 150 for n in draws.values())  # 5 standard deviations


def test_a_site_that_leaves_does_not_reshuffle_the_others():
    for t in range(50):
        before = sample_sites(SITES, 2, 17, t)
        if "d" not in before:
            assert sample_sites(SITES[:3], 2, 17, t) == before


def test_too_many():
    with pytest.raises(ValueError, match="cannot sample 5 of 4"):
        sample_sites(SITES, 5, 1, 1)
