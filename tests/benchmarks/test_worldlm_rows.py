"""The federation files of the rows of benchmarks.worldlm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.worldlm_rows import ALONE, FLAT, HIER, REMEDY, ROWS, WORLDLM, Files, Plan, is_admitted, stages
from benchmarks.worldlm_texts import NATURAL, REGIONS, Kind
from photon_core.model.key_layers import key_layers
from photon_core.model.shapes import parameter_shapes
from schemas.reading.world import World, load_world

MODEL = {"n_layers": 6, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64}
STREAMS = {site: [{"name": site, "source": f"{site}.jsonl"}] for sites in REGIONS.values() for site in sites}


def plan(kind: Kind = NATURAL) -> Plan:
    return Plan("bytes", MODEL, 4, 5, 2, REGIONS, STREAMS, kind)


def worlds(folder: Path, row: str, kind: Kind = NATURAL) -> list[World]:
    return [written(folder, files) for files in stages(row, plan(kind))]


def written(folder: Path, files: Files) -> World:
    for name, data in files.items():
        (folder / name).write_text(yaml.safe_dump(data, sort_keys=False))
    return load_world(folder / next(iter(files)))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_valid_and_has_the_same_steps(row: str, tmp_path: Path) -> None:
    steps = 0
    for world in worlds(tmp_path, row):
        assert world.federation.rounds.count is not None
        steps += world.steps * world.federation.rounds.count
        sites = [site.name for _, node in world.nodes() for site in node.federation.sites]
        assert sorted(sites) == sorted(STREAMS)
        assert {node.federation.local.batch_size for _, node in world.nodes()} == {2}
    assert steps == plan().total == 2 * 4 * 5
    assert plan().tokens == 40 * 2 * 64 * 6


def test_the_rates_are_the_recipes_times_a_factor(tmp_path: Path) -> None:
    for row, lr in zip(FLAT, (1.6e-2, 0.8e-2, 3.2e-2), strict=True):
        optimizer = worlds(tmp_path, row)[0].federation.local.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.matrix_lr) == ("muon", lr, pytest.approx(1.25 * lr))


def test_alone_every_parameter_is_a_key_layer_that_never_mixes(tmp_path: Path) -> None:
    federation = worlds(tmp_path, "local")[0].federation
    named = {name for names in key_layers(federation).values() for name in names}
    assert named == set(parameter_shapes(federation.model))
    assert federation.worldlm is not None and federation.worldlm.temperature == 0
    assert federation.worldlm.residuals == "off" and ALONE["residuals"] == "off"


def test_fine_tuning_continues_from_flat_at_the_rate_that_flat_had_there(tmp_path: Path) -> None:
    flat, tuned = worlds(tmp_path, "tuned")
    assert (flat.federation.rounds.count, tuned.federation.rounds.count) == (6, 2)
    assert tuned.federation.start.run == flat.federation.run
    assert tuned.federation.start.store == flat.federation.store
    # a cosine from 1 to 0.1 is at 0.1 + 0.9 (1 - sqrt(1/2)) / 2 after three quarters
    local = tuned.federation.local
    assert local.optimizer.lr / flat.federation.local.optimizer.lr == pytest.approx(0.2318, abs=1e-4)
    assert local.schedule.alpha * local.optimizer.lr == pytest.approx(0.1 * flat.federation.local.optimizer.lr)


def test_the_shortest_run_has_a_round_of_fine_tuning(tmp_path: Path) -> None:
    found = [written(tmp_path, files) for files in stages("tuned", replace(plan(), rounds=1))]
    assert [world.federation.rounds.count for world in found] == [1, 1]


@pytest.mark.parametrize("row", [HIER, *WORLDLM])
def test_a_tree_has_two_rounds_a_call(row: str, tmp_path: Path) -> None:
    (world,) = worlds(tmp_path, row)
    assert {name: child.rounds for name, child in world.children.items()} == dict.fromkeys(REGIONS, 2)
    assert {tuple(key_layers(node.federation)) for _, node in world.nodes()} == (
        {()} if row == HIER else {("blocks.4", "blocks.5")}
    )


def test_noise_is_in_the_first_region_alone(tmp_path: Path) -> None:
    noisy = Kind(noise=(0.5, 2.0))
    for row in (FLAT[0], "worldlm/cosine", REMEDY):
        (world,) = worlds(tmp_path, row, noisy)
        found: dict[str, Any] = {name: child.federation for name, child in world.children.items()}
        first, second = found.values()
        assert (first.update.noise_multiplier, first.update.clip_norm) == (0.5, 2.0)
        assert (second.update.noise_multiplier, second.update.clip_norm) == (0, None)
        assert world.federation.server.discount_noise is (row == REMEDY)
    assert worlds(tmp_path, FLAT[0], noisy)[0].federation.rounds.count == 8
    assert is_admitted(FLAT[0], noisy) and not is_admitted("fedper", noisy) and is_admitted("fedper", NATURAL)
