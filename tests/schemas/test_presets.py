"""The published numbers, copied from the papers' tables, against the presets."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.federation import Federation
from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS, apply_preset
from schemas.sections.local import Optimizer
from schemas.sections.model import Model

#            blocks     d  heads   seq
SHAPES = {
    "75M": (3, 896, 16, 1024),
    "125M": (12, 768, 12, 2048),
    "350M": (24, 1024, 16, 2048),
    "1.3B": (24, 2048, 16, 2048),
    "3B": (32, 2560, 20, 2048),
    "7B": (32, 4096, 32, 2048),
}
#         rounds alpha max lr       T  batch
FEDERATED = {
    "75M": (40, 1e-6, 4e-4, 88_000, 256),
    "125M": (25, 1e-5, 3e-4, 15_000, 256),
    "350M": (40, 1e-1, 3e-4, 13_400, 256),
    "1.3B": (16, 1e-1, 2e-4, 24_800, 512),
}


def minimal(preset: str | None = None, **more: Any) -> dict[str, Any]:
    sites = [{"name": name, "streams": [{"name": "s", "source": "s.txt"}]} for name in "abc"]
    data = {"run": "r", "store": "s", "tokenizer": "gpt2", "local": {"steps": 64}, "sites": sites, **more}
    return {**data, "preset": preset} if preset else data


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(name: str) -> None:
    model = Model.model_validate({"preset": name})
    assert (model.n_layers, model.d_model, model.n_heads, model.max_seq_len) == SHAPES[name]
    assert (model.expansion_ratio, model.vocab_size) == (4, 50_368)


@pytest.mark.parametrize("name", FEDERATED)
def test_published_federated_settings(name: str) -> None:
    federation = Federation.model_validate(minimal(name))
    schedule, optimizer = federation.local.schedule, federation.local.optimizer
    assert FEDERATED[name] == (
        federation.rounds.count,
        schedule.alpha,
        optimizer.lr,
        federation.schedule_steps,
        federation.local.batch_size,
    )
    assert schedule.name == "cosine"
    assert (optimizer.name, optimizer.betas) == ("adamw", (0.9, 0.95))
    server = federation.server
    assert (server.optimizer, server.lr, server.momentum) == ("fedmom", 0.2, 0.9)
    assert federation.model == Model.model_validate({"preset": name})


def test_nothing_more_is_called_published() -> None:
    assert list(MODEL_PRESETS) == list(SHAPES)
    assert list(FEDERATED_PRESETS) == list(FEDERATED)


def test_the_files_own_values_go_over_the_presets() -> None:
    own = {"local": {"steps": 8, "optimizer": {"lr": 1e-3}}, "model": {"n_layers": 2}, "rounds": {"quorum": 1}}
    federation = Federation.model_validate(minimal("125M", **own))
    assert (federation.local.steps, federation.local.optimizer.lr) == (8, 1e-3)
    assert federation.local.optimizer.betas == (0.9, 0.95)
    assert (federation.model.n_layers, federation.model.d_model) == (2, 768)
    assert (federation.rounds.count, federation.rounds.quorum) == (25, 1)
    assert federation.server.momentum == 0.9


def recipe(name: str, preset: str | None = None, **more: Any) -> Federation:
    model = {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 50_368}
    data = minimal(preset, recipe=name, **({} if preset else {"model": model}), **more)
    return Federation.model_validate({key: value for key, value in data.items() if key != "local" or key in more})


def test_the_photon_recipe_is_the_released_script_for_125m() -> None:
    federation = recipe("photon")
    local, server = federation.local, federation.server
    assert (local.batch_size, local.steps, federation.rounds.count) == (32, 128, 320)
    assert (local.optimizer.lr, local.schedule.warmup_steps, local.schedule.alpha) == (6e-4, 800, 0.1)
    assert (server.optimizer, server.lr, server.momentum, local.clip_norm) == ("fedavg", 1.0, 0.0, 1.0)
    assert local.optimizer_state == "keep"
    assert federation.schedule_steps == 320 * 128


def test_the_photon_recipe_stretches_a_presets_schedule() -> None:
    """The batch an eighth, the large batch's learning rate, eight times the steps: the same tokens."""
    federation = recipe("photon", "1.3B")
    local = federation.local
    assert (local.batch_size, local.optimizer.lr, local.schedule.alpha) == (64, 2e-4, 0.1)
    assert local.schedule.total_steps == 8 * 24_800
    assert federation.rounds.count * local.steps == 8 * 24_800
    assert (federation.server.optimizer, federation.server.lr) == ("fedavg", 1.0)
    assert federation.model == Model.model_validate({"preset": "1.3B"})
    own = recipe("photon", "1.3B", local={"batch_size": 128, "steps": 100})
    assert own.schedule_steps * 128 == 24_800 * 512
    assert own.rounds.count * own.local.steps == own.schedule_steps


def test_the_other_recipes() -> None:
    rest = {"rounds": {"count": 3}, "local": {"batch_size": 8}}
    diloco = recipe("diloco", **rest)
    assert (diloco.local.steps, diloco.server.optimizer) == (500, "nesterov")
    assert (diloco.server.lr, diloco.server.momentum) == (0.7, 0.9)
    rest["local"]["steps"] = 5
    fedmom = recipe("fedmom", **rest).server
    assert (fedmom.optimizer, fedmom.lr, fedmom.momentum) == ("fedmom", 0.2, 0.9)
    local = recipe("local-sgd", **rest)
    assert (local.local.optimizer_state, local.server.optimizer, local.server.lr) == ("reset", "fedavg", 1.0)


def test_the_recipe_for_unlike_sites_is_what_was_probed() -> None:
    """benchmarks/NOTES.md; without a size."""
    federation = recipe("unlike-sites", rounds={"count": 48}, local={"batch_size": 4})
    local, server = federation.local, federation.server
    assert (local.steps, federation.schedule_steps, local.optimizer_state) == (20, 960, "average")
    optimizer, schedule = local.optimizer, local.schedule
    assert (optimizer.name, optimizer.lr, optimizer.matrix_lr, optimizer.momentum) == ("muon", 1.6e-2, 0.02, 0.95)
    assert (optimizer.betas, local.clip_norm) == ((0.9, 0.95), 1.0)
    assert (schedule.name, schedule.warmup(960), schedule.alpha) == ("cosine", 30, 0.1)
    assert (server.optimizer, server.lr, server.momentum) == ("nesterov", 0.7, 0.6)


def test_the_recipe_for_unlike_sites_keeps_a_presets_schedule() -> None:
    federation = recipe("unlike-sites", "125M")
    local = federation.local
    assert (federation.rounds.count * local.steps, federation.schedule_steps) == (15_000, 15_000)
    assert (local.batch_size, local.optimizer.name, local.optimizer.lr) == (256, "muon", 3e-4)
    assert (federation.server.optimizer, federation.server.lr) == ("nesterov", 0.7)


def plain(**more: Any) -> Federation:
    """A file that says nothing of how to learn, but for what is in `more`."""
    shape = {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 50_368}
    rest = {"rounds": {"count": 48}, "local": {"batch_size": 4}, "model": shape}
    return Federation.model_validate(minimal(**{**rest, **more}))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"preset": None},
        {"server": {}},
        {"server": {"guard": {"tries": 2}}},
        {"server": {"mean": "trimmed", "trim": 0.3}},
        {"update": {"codec": "int8"}},
    ],
)
def test_a_file_that_says_nothing_of_how_gets_our_recipe(said: dict[str, Any]) -> None:
    ours = recipe("unlike-sites", rounds={"count": 48}, local={"batch_size": 4}, **said)
    federation = plain(**said)
    assert federation.recipe == "unlike-sites"
    assert (federation.local, federation.server) == (ours.local, ours.server)
    assert (federation.server.optimizer, federation.server.lr) == ("nesterov", 0.7)
    assert Federation.model_validate(federation.model_dump(mode="json")) == federation, "as a store keeps it"


BARE = plain()


@pytest.mark.parametrize(
    "said",
    [
        {"server": {"lr": 1.0}},
        {"server": {"momentum": 0.0}},
        {"server": {"schedule": {"warmup_rounds": 3}}},
        {"server": {"weights": "uniform"}},
        {"local": {"optimizer": {"lr": 1e-3}}},
        {"local": {"optimizer_state": "keep"}},
        {"local": {"schedule": {"alpha": 0.2}}},
        {"local": {"schedule": {"name": "constant"}}},
        {"local": {"steps": 7}},
    ],
)
def test_a_key_overrides_that_key_and_no_other(said: dict[str, Any]) -> None:
    """`local.schedule` in a file once turned Muon into AdamW and dropped the averaged moments."""
    ((section, keys),) = said.items()
    local = {"batch_size": 4, **(keys if section == "local" else {})}
    found = plain(**said | {"local": local}).model_dump(mode="json")
    expected = BARE.model_dump(mode="json")
    for key, value in keys.items():
        mine = expected[section][key]
        expected[section][key] = mine | value if isinstance(value, dict) else value
    assert found == expected


def test_the_numbers_of_an_optimizer_that_is_not_named_go_with_it() -> None:
    server = plain(server={"optimizer": "fedavg"})
    assert (server.server.lr, server.server.momentum, server.local.optimizer.name) == (1.0, 0.0, "muon")
    local = plain(local={"batch_size": 4, "optimizer": {"name": "adamw"}})
    assert (local.local.optimizer, local.server) == (Optimizer(name="adamw"), BARE.server)


@pytest.mark.parametrize(
    "said", [{"update": {"clip_norm": 1.0, "noise_multiplier": 0.1}}, {"server": {"mean": "norm_bounded"}}]
)
def test_what_cannot_go_with_the_default_recipe_is_refused_with_what_to_write(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"average \(from recipe: unlike-sites\) .*; write keep"):
        plain(**said)
    assert plain(**said, recipe=None, local={"steps": 20, "batch_size": 4}).local.optimizer_state == "keep"


@pytest.mark.parametrize("name", FEDERATED)
def test_a_published_shape_gets_the_published_settings_of_its_size(name: str) -> None:
    """`model.preset: 1.3B` once got a learning rate that was found at 1 M parameters."""
    said = {"local": {"steps": 64, "schedule": {"warmup_steps": 5}}}
    by_shape = Federation.model_validate(minimal(model={"preset": name, "vocab_size": 257}, **said))
    by_preset = Federation.model_validate(minimal(name, **said))
    assert by_shape.recipe == "fedmom"
    assert (by_shape.local, by_shape.server, by_shape.rounds) == (
        by_preset.local,
        by_preset.server,
        by_preset.rounds,
    )
    assert Federation.model_validate(by_shape.model_dump(mode="json")) == by_shape, "as a store keeps it"


@pytest.mark.parametrize("name", ["3B", "7B"])
def test_a_shape_without_published_settings_must_name_a_recipe(name: str) -> None:
    rest = {"model": {"preset": name}, "rounds": {"count": 3}, "local": {"steps": 4, "batch_size": 8}}
    with pytest.raises(
        ValidationError, match=f"{name} is a published shape without .*; write recipe: with one of"
    ):
        Federation.model_validate(minimal(**rest))
    for named in (None, "diloco", "unlike-sites"):
        assert Federation.model_validate(minimal(recipe=named, **rest)).recipe == named


@pytest.mark.parametrize(
    ("rounds", "local", "warmup"),
    [
        (48, {}, 30),
        (2, {}, 10),
        (1, {"steps": 3}, 0),
        (48, {"schedule": {"total_steps": 60}}, 15),
        (1, {"schedule": {"warmup_steps": 7}}, 7),
    ],
)
def test_our_recipes_warmup_is_a_quarter_of_a_short_run(rounds: int, local: dict[str, Any], warmup: int) -> None:
    federation = plain(recipe="unlike-sites", rounds={"count": rounds}, local={"batch_size": 4, **local})
    assert federation.local.schedule.warmup(federation.schedule_steps) == warmup


def test_a_recipe_goes_over_the_preset_and_the_file_over_both() -> None:
    federation = recipe("diloco", "125M", server={"momentum": 0.6}, local={"batch_size": 16})
    assert (federation.local.steps, federation.local.batch_size, federation.local.optimizer.lr) == (500, 16, 3e-4)
    assert (federation.server.optimizer, federation.server.lr, federation.server.momentum) == (
        "nesterov",
        0.7,
        0.6,
    )
    own = recipe("diloco", "125M", server={"optimizer": "fedavg"}, local={"steps": 10})
    assert (own.local.steps, own.server.lr, own.server.momentum) == (10, 1.0, 0.0)


def test_another_server_optimizer_takes_none_of_the_presets_numbers() -> None:
    fedavg = Federation.model_validate(minimal("125M", server={"optimizer": "fedavg"})).server
    assert (fedavg.lr, fedavg.momentum) == (1.0, 0.0)
    slower = Federation.model_validate(minimal("125M", server={"lr": 0.1})).server
    assert (slower.optimizer, slower.lr, slower.momentum) == ("fedmom", 0.1, 0.9)


def test_another_local_optimizer_takes_none_of_the_recipes_numbers() -> None:
    """unlike-sites' 0.016 is for what Muon leaves to AdamW, not for a whole model."""
    rest = {"rounds": {"count": 3}, "local": {"batch_size": 8, "optimizer": {"name": "adamw"}}}
    alone = recipe("unlike-sites", **rest).local
    assert (alone.optimizer, alone.steps, alone.optimizer_state) == (Optimizer(name="adamw"), 20, "average")
    sized = recipe("unlike-sites", "125M", **rest).local.optimizer
    assert sized == Optimizer(name="adamw", lr=3e-4), "the size's own rate"
    slower = recipe("unlike-sites", local={"batch_size": 8, "optimizer": {"lr": 1e-3}}, rounds={"count": 3}).local
    assert (slower.optimizer.name, slower.optimizer.lr, slower.optimizer.matrix_lr) == ("muon", 1e-3, 0.02)


def test_an_optimizer_that_the_preset_has_and_the_recipe_has_not_keeps_the_presets_numbers() -> None:
    server = recipe("diloco", "125M", server={"optimizer": "fedmom"}).server
    assert (server.lr, server.momentum) == (0.2, 0.9)


def test_presets_are_not_changed_by_their_use() -> None:
    before = repr(FEDERATED_PRESETS)
    data = minimal("75M", server={"lr": 0.5})
    merged = apply_preset(data)
    merged["local"]["steps"] = 1
    assert repr(FEDERATED_PRESETS) == before
    assert data == minimal("75M", server={"lr": 0.5})


@pytest.mark.parametrize("preset", [None, "2B", ["75M"], {}, 75])
def test_what_is_no_preset_brings_nothing(preset: Any) -> None:
    data = {"preset": preset, "recipe": None, "run": "r"}
    assert apply_preset(data) == data
