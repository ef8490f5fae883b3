"""Residuals: what goes up and down, to whom, and what holds in every tree."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photon_core.aggregation.residuals import Dropped, Offer, Policy, handed_up, in_order, partition, picked, route
from schemas.manifests import Residual
from tests.photon_core.aggregation.algorithm import Log, Node, Path, fit

LAYERS = ["blocks.2", "blocks.3"]


def residual(*origin: str, layer: str = "blocks.2", born: int = 1) -> Residual:
    return Residual(
        layer=layer, origin=list(origin), born=born, hops=len(origin), folder="/".join(origin), files=[]
    )


def offer(one: Residual, mean: float, from_above: bool = False, /, **members: float) -> Offer:
    return Offer(one, members, mean, from_above)


# PartitionResiduals


def test_the_row_that_the_mean_represents_least_goes_up() -> None:
    rows = [
        offer(residual(name, layer=layer), mean)
        for layer, means in [("blocks.2", [0.9, 0.2, 0.5]), ("blocks.3", [0.1, 0.2, 0.3])]
        for name, mean in zip("abc", means, strict=True)
    ]
    found = partition(rows, [], "tree", is_root=False)
    assert [(one.layer, one.origin) for one in found.up] == [("blocks.2", ["b"]), ("blocks.3", ["a"])]
    assert (found.down, found.dropped) == ([], [])


def test_ties_go_to_the_lower_name() -> None:
    rows = [offer(residual(name), 0.5) for name in "cab"]
    assert partition(rows, [], "tree", is_root=False).up == [residual("a")]


def test_the_root_picks_nothing_to_go_up() -> None:
    assert partition([offer(residual("a"), 0.5, b=0.9)], [], "tree", is_root=True) == ([], [], [])


@pytest.mark.parametrize(
    ("members", "mean", "falls"),
    [
        ({"a": 1.0, "b": 0.6, "c": 0.1}, 0.5, True),
        ({"a": 1.0, "b": 0.5, "c": 0.1}, 0.5, True),  # as well as the mean
        ({"a": 1.0, "b": 0.4, "c": 0.1}, 0.5, False),  # its own branch does not count
        ({"a": 1.0}, -1.0, False),
    ],
)
def test_what_comes_from_below_goes_down_where_another_member_fits(
    members: dict[str, float], mean: float, falls: bool
) -> None:
    one = residual("a", "x")
    found = partition([], [Offer(one, members, mean)], "tree", is_root=False)
    assert found == (([], [one], []) if falls else ([one], [], []))
    assert partition([], [Offer(one, members, mean)], "tree", is_root=True) == ([], [one], [])


def test_of_too_many_the_least_represented_goes_up_and_the_best_fitting_down() -> None:
    low, lower = residual("a", "x"), residual("b", "y")
    found = partition([], [offer(low, 0.3, b=0.2), offer(lower, 0.2, a=0.1)], "tree", is_root=False)
    assert found == ([lower], [], [Dropped(low, "over the limit")])
    fits, better, other = residual("a", "x"), residual("b", "y"), residual("a", "z")
    handed = [offer(fits, 0, c=0.7, b=0.1), offer(better, 0, c=0.8, a=0.1), offer(other, 0, c=0.1, b=0.2)]
    found = partition([], handed, "tree", is_root=False)
    assert found == ([], in_order([better, other]), [Dropped(fits, "over the limit")])


def test_a_region_keeps_what_it_picks_among_its_own() -> None:
    """It goes to another member that it fits, or nowhere; and nothing from below goes further up."""
    fits, lonely, handed = residual("a"), residual("b", layer="blocks.3"), residual("c", "x")
    rows = [offer(fits, 0.1, a=1, b=0.2, c=0), offer(lonely, 0.1, a=0, b=1, c=0)]
    for is_root in (True, False):
        assert partition(rows, [], "region", is_root) == ([], [fits], [])
    found = partition([], [offer(handed, 0.5, a=0.4)], "region", is_root=False)
    assert found == ([], [], [Dropped(handed, "it fits no other member")])


def test_off_gives_nothing_and_counts_what_is_handed_up() -> None:
    one = residual("a", "x")
    found = partition([offer(residual("a"), 0.1, b=0.9)], [offer(one, 0.1, b=0.9)], "off", is_root=False)
    assert found == ([], [], [Dropped(one, "residuals are off")])


# RouteResiduals


def sent(one: Residual) -> Residual:
    return one.model_copy(update={"hops": one.hops + 1})


def test_it_goes_to_the_member_that_it_fits_best_but_its_own() -> None:
    one = residual("a", "x")
    assert route([offer(one, 0, a=1, b=0.2, c=0.3)], "abc", "tree") == ({"c": [sent(one)]}, [])
    assert route([offer(one, 0, a=1, c=0.3, b=0.3)], "abc", "tree") == ({"b": [sent(one)]}, [])


def test_one_from_above_may_go_to_a_member_of_its_origins_name() -> None:
    one = residual("a", "x")
    assert route([offer(one, 0, True, a=1, b=0.2)], "ab", "tree") == ({"a": [sent(one)]}, [])


@pytest.mark.parametrize(
    ("taking", "members", "why"),
    [
        ("ab", {"a": 1.0}, "there is no other member"),
        ("ab", {"a": 1.0, "b": 0.1, "c": 0.2}, "absent"),  # paused, or not sampled: b does not get it instead
        ("", {"a": 1.0, "b": 0.1}, "absent"),
    ],
)
def test_who_gets_none(taking: str, members: dict[str, float], why: Any) -> None:
    one = residual("a", "x")
    assert route([Offer(one, members)], taking, "tree") == ({}, [Dropped(one, why)])


def test_a_member_gets_one_of_a_layer() -> None:
    """That which fits it best; one of another layer comes beside it."""
    good, better, other = residual("a", "x"), residual("z"), residual("a", "y", layer="blocks.3")
    offers = [offer(good, 0, a=1, b=0.2), offer(better, 0, True, a=0, b=0.3), offer(other, 0, a=1, b=0.1)]
    found = route(offers, "ab", "tree")
    assert found == ({"b": [sent(better), sent(other)]}, [Dropped(good, "over the limit")])


def test_who_gives_none_takes_none() -> None:
    above, own = residual("z"), residual("a", "x")
    found = route([offer(above, 0, True, a=1), offer(own, 0, b=1)], "ab", "off")
    assert found == ({}, [Dropped(above, "residuals are off"), Dropped(own, "residuals are off")])


def test_names_and_links_on_the_way_up() -> None:
    one = picked("blocks.2", "site", 7, "here", [])
    assert (one.origin, one.hops, one.born) == (["site"], 1, 7)
    assert handed_up(handed_up(one, "berlin"), "europe").origin == ["europe", "berlin", "site"]
    assert handed_up(handed_up(one, "berlin"), "europe").hops == 3


# Trees


def planted(policies: dict[str, Policy]) -> Node:
    """Two clusters of key layers, one site of each in the other's region."""
    start = np.full(8, 0.3)
    regions = [
        Node(("west",), dict.fromkeys(LAYERS, start), [leaf("west", n, start) for n in ("w1", "w2", "east_like")]),
        Node(("east",), dict.fromkeys(LAYERS, start), [leaf("east", n, start) for n in ("e1", "e2", "west_like")]),
    ]
    root = Node((), dict.fromkeys(LAYERS, start), regions)
    for node in (root, *regions):
        node.policy = policies.get("/".join(node.path), policies["all"])
    return root


def leaf(region: str, name: str, start: np.ndarray[Any, Any]) -> Node:
    return Node((region, name), dict.fromkeys(LAYERS, start))


def learn(node: Node) -> dict[str, Any]:
    """Half of the way to the centre of the site's cluster, and a little that is the site's own."""
    rng = np.random.default_rng(sum(map(ord, node.name)))
    centre = np.eye(8)[0 if node.name.startswith("w") else 1]
    return {layer: 0.5 * keys + 0.5 * centre + 0.02 * rng.standard_normal(8) for layer, keys in node.keys.items()}


def leaves_reached(root: Node, train: Callable[[Node], dict[str, Any]], rounds: int = 4) -> tuple[Log, set[Any]]:
    log = Log()
    for _ in range(rounds):
        fit(root, None, [], train, log)
    reached = {
        (log.origins[one.folder], to, one.layer)
        for start, to, _, one in log.sent
        if len(to) > len(start) and len(to) == 2
    }
    return log, reached


def test_a_misplaced_sites_block_arrives_at_a_leaf_of_its_own_cluster() -> None:
    log, reached = leaves_reached(planted({"all": "tree"}), learn)
    assert {(origin, layer) for origin, _, layer in reached} == {
        (origin, layer) for origin in [("west", "east_like"), ("east", "west_like")] for layer in LAYERS
    }
    for origin, to, _ in reached:
        assert to in (
            [("east", "e1"), ("east", "e2")] if origin[0] == "west" else [("west", "w1"), ("west", "w2")]
        )
    assert {one.hops for start, to, _, one in log.sent if len(to) == 2 and len(start) == 1} == {4}
    assert log.dropped == []


@pytest.mark.parametrize("off", ["all", "", "east"], ids=["everywhere", "at the root", "in a region"])
def test_with_residuals_off_it_does_not_arrive(off: str) -> None:
    log, reached = leaves_reached(planted({"all": "tree", off: "off"}), learn)
    arrived = {origin for origin, _, _ in reached}
    assert arrived == set()
    if off == "all":
        assert log.sent == log.dropped == []
    else:  # what the others have sent is counted
        assert {(path, why) for path, _, why in log.dropped} == {((off,) if off else (), "residuals are off")}


def test_a_target_that_is_away() -> None:
    """What was for it is dropped and counted; nobody gets it instead."""
    _, reached = leaves_reached(planted({"all": "tree"}), learn, rounds=2)
    target = next(to for origin, to, layer in sorted(reached) if origin[0] == "west")
    root, log = planted({"all": "tree"}), Log()
    fit(root, None, [], learn, log)
    root.children[1].away.add(target[-1])
    fit(root, None, [], learn, log)
    lost = {one.folder for path, one, why in log.dropped if (path, why) == (("east",), "absent")}
    assert {log.origins[folder] for folder in lost} == {("west", "east_like")}
    assert all(log.pooled(folder) == [("east",)] for folder in lost)


policies = st.sampled_from(["tree", "tree", "region", "off"])
shapes = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=8)


def tree(shape: Any, rng: np.random.Generator, policy: Callable[[], Policy], path: Path = ()) -> Node:
    keys = {layer: rng.standard_normal(3) for layer in LAYERS}
    below = [tree(each, rng, policy, (*path, f"n{number}")) for number, each in enumerate(shape or [])]
    return Node(path, keys, below, policy(), int(rng.integers(1, 3)))


def depth(node: Node) -> int:
    return 1 + max(map(depth, node.children)) if node.children else 0


@given(shapes.filter(bool), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_in_every_tree(shape: Any, seed: int, data: Any) -> None:
    """One member at a node, never home, each node once, two links a level, one a layer and link at a time."""
    rng = np.random.default_rng(seed)
    root = tree(shape, rng, lambda: data.draw(policies))
    log = Log()

    def train(node: Node) -> dict[str, Any]:
        return {layer: rng.standard_normal(3) for layer in node.keys}

    for _ in range(4):
        for node in [root, *root.children]:
            node.away = {child.name for child in node.children[1:] if rng.random() < 0.2}
        fit(root, None, [], train, log)
    for folder, origin in log.origins.items():
        nodes = log.pooled(folder)
        assert len(set(nodes)) == len(nodes), "pooled twice"
        assert all(to[: len(above)] == above for above, to in pairwise(nodes)), "two ways"
        assert not any(origin[: len(to)] == to or to[: len(origin)] == origin for to in nodes), "home"
    for _, _, _, one in log.sent:
        assert one.hops <= 2 * depth(root)
    links = Counter((start, to, call, one.layer) for start, to, call, one in log.sent)
    assert max(links.values(), default=1) == 1
