"""A tree of federations through whole rounds: entries, contributions, limits, the same bits after any order."""

from pathlib import Path

import pytest

from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.reading.world import World
from tests.worlds import prepare_world, write_world

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def run(world: World) -> list[RoundManifest]:
    from flows.federated_run import federated_run

    federated_run(world.federation)
    return history(run_of(world.federation))


def rounds_of(federation: Federation) -> list[RoundManifest]:
    return history(run_of(federation))


def test_a_tree_trains_and_its_history_says_what_each_round_belongs_to(tmp_path: Path):
    world = prepare_world(write_world(tmp_path / "w", region={"worldlm": {"rounds": 2}}))
    rounds = run(world)
    assert [m.round for m in rounds] == [0, 1, 2]
    assert all(set(m.updates) == set(m.evaluations) == {"north", "south"} for m in rounds[1:])
    assert rounds[2].metrics["perplexity"] < rounds[1].metrics["perplexity"]
    for name, child in world.children.items():
        chain = rounds_of(child.federation)
        assert [m.kind for m in chain] == ["train", "entry", "train", "train", "entry", "train", "train"]
        entries = [m for m in chain if m.kind == "entry"]
        assert [m.parent.round for m in entries] == [1, 2]
        assert all(m.parent.run == "world" and m.parent.member == name for m in entries)
        assert [m.parent.sha256 for m in entries] == [run_of(world.federation).round_sha256(t) for t in (0, 1)]
        assert [m.global_step for m in chain] == [0, 0, 3, 6, 6, 9, 12]
        assert chain[0].model_sha256 == rounds[0].model_sha256, "the common start"
        assert [m.place for m in chain] == [0, 0, 1, 2, 2, 3, 4]
    assert [m.global_step for m in rounds] == [0, 6, 12]
    tokens = {name: update.tokens for name, update in rounds[1].updates.items()}
    assert tokens == {"north": 2 * 2 * 3 * 4 * 64, "south": 2 * 2 * 3 * 4 * 64}


def test_with_auto_every_node_takes_what_gives_the_lowest_loss(tmp_path: Path):
    auto = {"worldlm": {"temperature": "auto"}}
    world = prepare_world(write_world(tmp_path / "w", root=auto, region={"worldlm": {"temperature": "auto"}}))
    rounds = run(world)
    assert all(len(m.attention["blocks.1"].losses) == 5 for m in rounds[1:])
    for m in rounds[1:]:
        found, tokens = m.attention["blocks.1"], sum(one["tokens"] for one in m.evaluations.values())
        assert found.losses[found.chosen] == min(found.losses.values())
        mean = sum(one["loss"] * one["tokens"] for one in m.evaluations.values()) / tokens
        assert found.losses[found.chosen] == pytest.approx(mean), "the evaluation of the model that was taken"
    for child in world.children.values():
        chain, node = rounds_of(child.federation), run_of(child.federation)
        entries = [m.attention["blocks.1"] for m in chain if m.kind == "entry"]
        assert [len(one.losses) for one in entries] == [0, 6], "before its first round it has no own row"
        trained = [m for m in chain if m.kind == "train"][1:]
        sites = [node.update(m.round, name, 1).entry for m in trained for name in m.updates]
        assert [len(one) for one in sites] == [0, 0, 1, 1]
        for one in [entries[1], *(entry["blocks.1"] for entry in sites[2:])]:
            assert len(one.losses) == 6 and one.losses[one.chosen] == min(one.losses.values())
        for m in trained:
            assert m.attention["blocks.1"].losses


def test_residuals_go_up_and_come_down_to_one_member_each(tmp_path: Path):
    world = prepare_world(write_world(tmp_path / "w", root={"rounds": {"count": 3}}))
    rounds = run(world)
    for child in world.children.values():
        trained = [m for m in rounds_of(child.federation) if m.kind == "train"][1:]
        assert all(len(m.up) == 1 and m.up[0].layer == "blocks.1" for m in trained)
    assert all(len(m.down) in (1, 2) and not m.up for m in rounds[1:])
    root = run_of(world.federation)
    for t in (2, 3):
        sent = {name: root.residuals(t, name) for name in world.children}
        assert sum(map(len, sent.values())) == len(rounds[t - 1].down)
        for name, residuals in sent.items():
            assert all(residual.origin[0] != name for residual in residuals), "never home"
            entry = [m for m in rounds_of(world.children[name].federation) if m.kind == "entry"][t - 1]
            assert [r.origin for r in entry.received] == [r.origin for r in residuals]
            if residuals:
                assert entry.attention["blocks.1"].rows[2:] == [
                    f"{'/'.join(residuals[0].origin)}@{residuals[0].born}"
                ]
