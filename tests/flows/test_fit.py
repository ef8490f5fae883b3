"""A tree of federations through whole rounds: entries, contributions, limits, and the same bits after any order."""

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
