"""Who attends to whom, from manifests: weights by node, entropies, and nodes that keep their own key layers."""

from math import log
from pathlib import Path

import pytest

from photon_core.evidence.tree import Call, Entry, Tree
from photon_core.report.attention import ENTRY, MEMBERS, Keeper, entropies, heat_map, keepers, queries, sentences
from schemas.manifests import RoundManifest
from tests.chains import KEYS, LAYER, above, attention, chains, manifest, small_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return small_tree(tmp_path)


def test_the_newest_weights_are_by_node(tree: Tree) -> None:
    north, d = ("north",), ("south", "d")
    assert {(one.node, one.pool): one.weights for one in queries(tree, LAYER)} == {
        ((), MEMBERS): {(): 0.5, north: 0.5},
        (north, MEMBERS): {north: 0.6, ("north", "a"): 0.4},
        (north, ENTRY): {north: 0.2, (): 0.5, d: 0.3},
        (("north", "a"), ENTRY): {("north", "a"): 0.1, north: 0.6, d: 0.3},
    }
    picture = heat_map(tree, LAYER)
    assert picture is not None and "north/a at entry: north 0.60, south/d 0.30, north/a 0.10." in picture.alt
    assert heat_map(tree, "blocks.0") is None


def test_a_residual_that_was_not_read_is_named_from_its_row(tmp_path: Path) -> None:
    found = {(one.node, one.pool): one.weights for one in queries(small_tree(tmp_path, sent={}), LAYER)}
    assert found[("north",), ENTRY] == {("north",): 0.2, (): 0.5, ("south", "d"): 0.3}


def test_entropy_by_the_roots_rounds(tree: Tree) -> None:
    found = entropies(tree)
    assert found[()] == [(1, pytest.approx(0.5 * log(2) + 0.5 * log(4))), (2, pytest.approx(log(2)))]
    assert found["north",][1] == (2, pytest.approx(-(0.6 * log(0.6) + 0.4 * log(0.4))))
    assert ("south",) not in found


def kept(own: list[float], tau: float = 1.0) -> list[RoundManifest]:
    """A region's chain: a call for each own weight, which its entry and its mean have."""
    rounds = [manifest("north", 0, key_layers=KEYS)]
    for call, weight in enumerate(own, 1):
        entry = attention(weight, 1 - weight, rows=("parent",), tau=tau)
        mean = attention(0.5, 0.5, rows=("a",))
        rounds += [
            manifest(
                "north", 2 * call - 1, kind="entry", parent=above("north", call), entries=call, attention=entry
            ),
            manifest("north", 2 * call, entries=call, attention=mean),
        ]
    return rounds


@pytest.mark.parametrize(
    "own, tau, named",
    [
        ([0.5, 0.995, 0.995, 0.999], 1.0, True),
        ([0.995, 0.995, 0.995, 0.98], 1.0, False),
        ([0.995, 0.995], 1.0, False),
        ([1.0, 1.0, 1.0], 0.0, False),
    ],
)
def test_a_node_with_an_own_weight_over_099_for_three_calls_is_named(
    own: list[float], tau: float, named: bool, tmp_path: Path
) -> None:
    tree = small_tree(tmp_path, rounds={**chains(), ("north",): kept(own, tau)}, site_entries={})
    assert keepers(tree) == ([Keeper(("north",), ENTRY, [LAYER])] if named else [])
    if named:
        assert sentences(tree) == [
            "north keeps its own key layers: in the last 3 calls, over 99% of the weight was on its own row "
            "at entry (blocks.1)."
        ]


def test_a_site_is_named_too(tmp_path: Path) -> None:
    calls = [Entry(Call(("north",), t, "a"), attention(0.999, 0.001, rows=("parent",))) for t in (2, 4, 6)]
    tree = small_tree(tmp_path, site_entries={("north", "a"): calls})
    assert keepers(tree) == [Keeper(("north", "a"), ENTRY, [LAYER])]
