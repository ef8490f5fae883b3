"""Losses of a tree's own models by the root's rounds, from manifests."""

from math import exp
from pathlib import Path

import pytest

from photon_core.evidence.losses import federation_losses, mean_losses, perplexities, site_losses
from photon_core.evidence.tree import Tree
from tests.chains import small_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return small_tree(tmp_path)


def test_own_models_by_the_roots_rounds(tree: Tree) -> None:
    assert federation_losses(tree) == {
        (): [(1, 2.0), (2, 1.5)], ("north",): [(1, 2.5), (2, 2.25)], ("south",): [(1, 3.5)],
    }  # fmt: skip
    assert site_losses(tree) == {
        ("north", "a"): [(1, 1.0), (2, 0.5)], ("north", "b"): [(1, 2.0)],
        ("south", "c"): [(1, 3.0)], ("south", "d"): [(1, 4.0)],
    }  # fmt: skip


def test_the_mean_is_of_the_newest_models_of_all_sites(tree: Tree) -> None:
    lines = site_losses(tree)
    assert mean_losses(lines) == [(1, (1 + 2 + 3 + 4) / 4), (2, (0.5 + 2 + 3 + 4) / 4)]
    late = {**lines, ("south", "e"): [(2, 5.5)]}
    assert mean_losses(late) == [(2, (0.5 + 2 + 3 + 4 + 5.5) / 5)]
    assert mean_losses({}) == []
    assert perplexities([(1, 2.0)]) == [(1, exp(2.0))]
