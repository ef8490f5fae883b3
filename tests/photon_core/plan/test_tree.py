"""The plan of a tree: bytes against the formula's published cases, seconds from its definition."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_core.model.cost import flops_per_token
from photon_core.model.shapes import parameter_count, parameter_shapes
from photon_core.plan.costs import update_bytes
from photon_core.plan.measured import call_seconds
from photon_core.plan.tree import TreePlan, plan_tree
from schemas.manifests import RoundManifest
from schemas.reading.world import load_world
from tests.chains import above, manifest, update
from tests.worlds import write_world

SIX = {"north": ("a", "b", "c"), "south": ("d", "e", "f")}
BIG = {"model": {"n_layers": 12, "d_model": 768, "n_heads": 12, "vocab_size": 50368, "max_seq_len": 1024}}
FAST = {"hardware": {"tflops": 100}, "link": {"up": 1, "down": 2}}


def planned(folder: Path, rounds: Any = None, **sections: Any) -> TreePlan:
    return plan_tree(load_world(write_world(folder, **sections)), rounds or {})


@pytest.mark.parametrize(
    "rounds, residuals, expected",
    [
        (1, "off", 1 + 1 / 3),
        (2, "off", 1 + 1 / 6),
        (4, "off", 1 + 1 / 12),
        (1, "tree", 1.4472),
        (2, "tree", 1.2236),
    ],
)
def test_the_surplus_over_flat(rounds: int, residuals: str, expected: float, tmp_path: Path) -> None:
    """Six sites, two regions: 1 + m kappa / 6 k + 2 (1 + m kappa) / 6 k, kappa = 28.35 M / 124.5 M."""
    worldlm: dict[str, Any] = {"worldlm": {"residuals": residuals}}
    region = BIG | {"worldlm": {"residuals": residuals, "rounds": rounds}}
    plan = planned(tmp_path, regions=SIX, root=BIG | worldlm, region=region)
    assert plan.over_flat == pytest.approx(expected, abs=1e-4 if residuals == "tree" else 1e-9)


def test_bytes_by_link(tmp_path: Path) -> None:
    root = {"worldlm": {"residuals": "tree"}, "local": {"optimizer_state": "keep"}}
    plan = planned(tmp_path, root=root, region=root | {"worldlm": {"rounds": 2}})
    model = load_world(tmp_path / "world.yaml").federation.model
    shapes = parameter_shapes(model)
    whole, keys = (
        4 * parameter_count(model),
        4 * sum(prod(shape) for name, shape in shapes.items() if name.startswith("blocks.1.")),
    )
    links = {f"{link.above}-{link.member.names[-1]}": link for link in plan.links}
    assert list(links) == ["world-north", "north-a", "north-b", "world-south", "south-c", "south-d"]
    north, a = links["world-north"], links["north-a"]
    assert (north.times, north.down, north.up) == (1, whole + keys, whole + keys)
    assert (a.times, a.up) == (2, 2 * whole)
    assert a.down == 2 * whole + keys / 2, "one residual a call, for one of two sites"


def test_key_layers_travel_whole(tmp_path: Path) -> None:
    codec = {"update": {"codec": "int8"}, "local": {"optimizer_state": "keep"}}
    world = load_world(write_world(tmp_path, root=codec, region=codec))
    north = world.children["north"].federation
    flat = update_bytes(north.model_copy(update={"worldlm": None}))
    shapes = parameter_shapes(north.model)
    keys = sum(prod(s) for name, s in shapes.items() if name.startswith("blocks.1."))
    assert update_bytes(north) == pytest.approx(flat + keys * (4 - 1 - 4 / 256), rel=0.02)


def test_seconds_by_hand(tmp_path: Path) -> None:
    """T = rounds x (straggler + aggregation + evaluation), from the leaves up."""
    off = {"worldlm": {"residuals": "off"}}
    file = write_world(tmp_path, root=BIG | off, region=BIG | {"worldlm": {"residuals": "off", "rounds": 3}})
    declare(tmp_path, a={"steps": 1}, b={}, c={"steps": 1}, d={"steps": 1})
    plan = plan_tree(load_world(file), {})
    federation = load_world(file).children["north"].federation
    tokens = federation.local.batch_size * federation.model.max_seq_len
    step = tokens * flops_per_token(federation.model) / (100e12 * 0.4)
    size = 4.0 * parameter_count(federation.model)
    north, south = [member.node for member in plan.root.members]
    assert north is not None and south is not None
    straggler = 2 + 3 * step + size / 0.25e9 + size / 0.125e9
    assert north.members_seconds == pytest.approx(straggler)
    assert [member.seconds for member in plan.root.members] == [north.call_seconds, south.call_seconds]
    assert north.call_seconds == pytest.approx(3 * (straggler + north.aggregate + north.evaluate))
    assert plan.root.members_seconds == north.call_seconds > (south.call_seconds or 0)
    assert plan.seconds == pytest.approx(north.call_seconds + plan.root.aggregate + plan.root.evaluate)
    assert plan.run_seconds == pytest.approx((plan.count or 0) * plan.seconds)


def test_a_declared_link_of_a_region_takes_time(tmp_path: Path) -> None:
    file = write_world(tmp_path, root=BIG, region=BIG)
    declare(tmp_path, a={}, b={}, c={}, d={})
    before = plan_tree(load_world(file), {}).root.members[0]
    data = yaml.safe_load(file.read_text())
    data["federations"][0]["link"] = {"up": 0.1, "down": 0.2}
    file.write_text(yaml.safe_dump(data))
    after = plan_tree(load_world(file), {}).root.members[0]
    assert before.transfer_seconds == 0 and after.work == before.work
    assert after.transfer_seconds == pytest.approx(after.download * 8 / 0.2e9 + after.upload * 8 / 0.1e9)


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    plan = plan_tree(load_world(file), {})
    assert plan.seconds is plan.run_seconds is None
    assert plan.without_speed == [("north", "a"), ("north", "b"), ("south", "c"), ("south", "d")]
    data = yaml.safe_load(file.read_text())
    del data["federations"][0]["federation"]
    file.write_text(yaml.safe_dump(data))
    far = plan_tree(load_world(file), {})
    assert far.unknown == [("north",)] and far.flat_bytes is far.over_flat is None and far.round_bytes > 0


def test_a_part_of_a_tree_is_planned_for_a_call(tmp_path: Path) -> None:
    write_world(tmp_path, region={"worldlm": {"rounds": 2}})
    plan = plan_tree(load_world(tmp_path / "north.yaml"), {})
    assert (plan.root.rounds, plan.count, [link.times for link in plan.links]) == (2, None, [2, 2])


def timed(run: str, t: int, seconds: float, **more: Any) -> RoundManifest:
    return manifest(run, t, seconds={"sites": seconds, "aggregate": 1.0, "evaluate": 2.0}, **more)


def test_seconds_of_calls_are_those_of_the_rounds_since_the_entry() -> None:
    chain = [
        manifest("north", 0),
        manifest("north", 1, kind="entry", parent=above("north", 1), entries=1),
        timed("north", 2, 10.0, entries=1),
        timed("north", 3, 11.0, entries=1),
        manifest("north", 4, kind="entry", parent=above("north", 2), entries=2),
        timed("north", 5, 12.0, entries=2),
    ]
    assert call_seconds(chain) == {1: 27.0, 2: 15.0}


def test_measured_rounds_of_every_level_calibrate_it(tmp_path: Path) -> None:
    """Sites took 10 s side by side, regions 20 s one after the other: the plan predicts the same again."""
    file = write_world(tmp_path)
    tokens = 4 * 64 * 3

    def region(name: str, *sites: str) -> list[RoundManifest]:
        done = {site: update(tokens, 3, tokens_per_second=tokens / 8, seconds=10.0) for site in sites}
        entry = manifest(name, 1, kind="entry", parent=above(name, 1), entries=1)
        return [manifest(name, 0), entry, timed(name, 2, 10.0, entries=1, updates=done)]

    members = {name: update(2 * tokens, 3) for name in ("north", "south")}
    rounds = {
        (): [manifest("world", 0), timed("world", 1, 26.0, updates=members)],
        ("north",): region("north", "a", "b"), ("south",): region("south", "c", "d"),
    }  # fmt: skip
    plan = plan_tree(load_world(file), rounds)
    assert [node.calibrated for node in plan.root.below()] == [1, 1, 1] and plan.measured == 29.0
    north = plan.root.members[0].node
    assert north is not None and north.members_seconds == pytest.approx(10.0)
    assert plan.root.members_seconds == pytest.approx(2 * (north.call_seconds or 0) / (2 * 13.0 / 26.0))


def declare(folder: Path, **sites: dict[str, Any]) -> None:
    """Hardware and link of all sites, and more of each."""
    for name in ("north", "south"):
        data = yaml.safe_load((folder / f"{name}.yaml").read_text())
        data["sites"] = [site | FAST | sites[site["name"]] for site in data["sites"]]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
