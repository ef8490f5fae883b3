"""What crosses the links of a tree: sums of the sizes in manifests."""

from collections import Counter
from pathlib import Path

from photon_core.evidence.links import UNSENT, Link, Route, dropped, links, routes
from tests.chains import LAYER, small_tree


def test_bytes_by_link(tmp_path: Path) -> None:
    assert links(small_tree(tmp_path)) == [
        Link((), "north", 2, 1000 + 1050 + 70, 2 * 1100),
        Link((), "south", 2, 1000 + 1050, 1170),
        Link(("north",), "a", 2, 1000 + 1000 + 70, 2 * 500),
        Link(("north",), "b", 2, 1000 + 1000, 600),
        Link(("south",), "c", 2, 2 * 1000, 500),
        Link(("south",), "d", 2, 2 * 1000, 2 * 600),
    ]


def test_a_residual_is_followed_from_its_origin_to_its_receivers(tmp_path: Path) -> None:
    assert routes(small_tree(tmp_path)) == [
        Route(2, (), 2, LAYER, ("south", "d"), ("north",), 3),
        Route(2, ("north",), 4, LAYER, ("south", "d"), ("north", "a"), 4),
    ]


def test_what_ends_is_counted_by_reason(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    assert dropped(tree) == {("north",): Counter({"out of line": 1}), ("south",): Counter({UNSENT: 1})}
    assert UNSENT not in dropped(small_tree(tmp_path / "unread", sent={})).get(("south",), {}), "not known"
