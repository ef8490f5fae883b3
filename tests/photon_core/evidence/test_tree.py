"""A tree as its stores have it: rounds placed in the root's, entries, and where residuals come from."""

from pathlib import Path

import pytest

from photon_core.evidence.tree import OUTSIDE, Call, Tree, with_residuals
from tests.chains import LAYER, above, attention, chains, manifest, north_chain, residual, small_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return small_tree(tmp_path)


def test_rounds_are_placed_in_the_roots(tree: Tree) -> None:
    north = [tree.place(("north",), t) for t in range(6)]
    assert north == [None, 1, 1, 2, 2, 2], "round 5, which is not committed, belongs to the last entry's call"
    assert tree.place((), 7) == 7
    assert tree.place(("elsewhere",), 1) is None


def test_deeper_rounds_are_placed_through_every_entry(tree: Tree) -> None:
    deep = [manifest("deep", 0), manifest("deep", 1, kind="entry", parent=above("deep", 4), entries=1)]
    rounds = {**tree.rounds, ("north", "deep"): deep}
    assert Tree(tree.world, rounds).place(("north", "deep"), 2) == 2
    del rounds["north",]
    assert Tree(tree.world, rounds).place(("north", "deep"), 2) is None


def test_after_a_rollback_the_entries_on_the_line_count(tree: Tree) -> None:
    chain = north_chain()
    chain.append(manifest("north", 5, kind="rollback", to=2, behind=[(3, 5)], entries=1))
    again = Tree(tree.world, {**tree.rounds, ("north",): chain})
    assert again.place(("north",), 6) == 1
    assert [entry.call.round for entry in again.entries(("north",))] == [1]


def test_entries_are_named_by_the_parents_round(tree: Tree) -> None:
    assert [entry.call for entry in tree.entries(("north",))] == [Call((), 1, "north"), Call((), 2, "north")]
    assert tree.entries(()) == [] and [entry.call.member for entry in tree.entries(("north", "a"))] == ["a"]


def test_the_origin_of_a_residual_is_a_path_from_the_root(tree: Tree) -> None:
    sent = residual("south", "d")
    assert tree.origin((), 2, sent) == ("south", "d")
    assert tree.origin(("north",), 4, sent) == ("south", "d"), "the parent had sent it"
    assert tree.origin(("south",), 4, residual("c")) == ("south", "c"), "it was picked there"
    alone = Tree(tree.world, {(): chains()["north",]})
    assert alone.origin((), 4, sent) == (OUTSIDE, "south", "d")


def test_only_rounds_with_something_to_send_are_read(tree: Tree) -> None:
    calls = [call for names, rounds in tree.rounds.items() for call in with_residuals(names, rounds)]
    assert set(calls) == set(tree.sent)


def test_attention_that_does_not_fit_is_excluded(tree: Tree) -> None:
    fitting = attention(0.5, 0.5, rows=("parent",))
    short = {LAYER: fitting[LAYER].model_copy(update={"weights": [1.0]})}
    negative = attention(1.5, -0.5, rows=("parent",))
    assert tree.mixed(fitting) == fitting
    assert tree.mixed(short) == tree.mixed(negative) == tree.mixed({"<b>": fitting[LAYER]}) == {}
