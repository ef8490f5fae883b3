"""Sampling is uniform, without replacement, and the same everywhere."""

from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import pytest

from photon_core.run.run import Run, model_sha256
from photon_core.run.sampling import TOKENS, member_tokens, sample_members
from photon_core.store.store import Store
from schemas.manifests import RoundManifest, UpdateRef

SITES = ["a", "b", "c", "d"]


def test_all_sites_when_k_is_p():
    assert sample_members(["d", "b", "a", "c"], 4, seed=1, t=1) == SITES


def test_same_inputs_same_sites_whatever_the_order():
    assert sample_members(SITES, 2, 7, 3) == sample_members(SITES[::-1], 2, 7, 3)


def test_every_pair_is_equally_likely():
    draws = Counter(tuple(sample_members(SITES, 2, 17, t)) for t in range(6000))
    assert set(draws) == set(combinations(SITES, 2))
    assert all(abs(n - 1000) < 150 for n in draws.values())  # 5 standard deviations


def test_a_site_that_leaves_does_not_reshuffle_the_others():
    for t in range(50):
        before = sample_members(SITES, 2, 17, t)
        if "d" not in before:
            assert sample_members(SITES[:3], 2, 17, t) == before


def test_too_many():
    with pytest.raises(ValueError, match="cannot sample 5 of 4"):
        sample_members(SITES, 5, 1, 1)


def test_by_tokens_as_if_drawn_one_after_the_other():
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 6.0}
    draws = Counter(tuple(sample_members(SITES, 2, 17, t, weights)) for t in range(6000))
    for pair in combinations(SITES, 2):
        chance = sum(weights[x] / 12 * weights[y] / (12 - weights[x]) for x, y in permutations(pair))
        deviation = (6000 * chance * (1 - chance)) ** 0.5
        assert abs(draws[pair] - 6000 * chance) < 5 * deviation
    assert all(sample_members(SITES, 4, 17, t, weights) == SITES for t in range(5))


def test_a_site_that_leaves_does_not_reshuffle_the_others_by_tokens_either():
    weights = dict.fromkeys(SITES, 5.0) | {"b": 7.0}
    for t in range(50):
        before = sample_members(SITES, 2, 17, t, weights)
        if "d" not in before:
            assert sample_members(SITES[:3], 2, 17, t, weights) == before


def test_tokens_are_learnt_from_the_newest_updates(tmp_path: Path):
    run = Run(Store(str(tmp_path)), "r")
    said = [{}, {"a": 100.0, "b": 50.0}, {"a": 300.0, "unknown": 9.0}, {"b": 0.0, "c": -1.0}]
    for t, tokens in enumerate(said):
        refs = {
            site: UpdateRef(attempt=1, sha256="", tokens=1, weight=1, bytes=1, steps=1, metrics={TOKENS: number})
            for site, number in tokens.items()
        }
        previous = run.round_sha256(t - 1) if t else ""
        run.commit_round(
            RoundManifest(
                run="r", round=t, model_sha256=model_sha256([]), model=[], updates=refs, federation_sha256="",
                previous_sha256=previous, created="", versions={},
            )
        )  # fmt: skip
    assert member_tokens(run, SITES, 1) == dict.fromkeys(SITES, 1.0), "no site has reported any: uniform"
    assert member_tokens(run, SITES, 4) == dict.fromkeys(SITES, 50.0), "no more than the median of the others"
    registered = {"a": 300, "b": 70, "c": None, "d": 10}
    assert member_tokens(run, SITES, 4, registered) == {"a": 300.0, "b": 70.0, "c": 70.0, "d": 10.0}
