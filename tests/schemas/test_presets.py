"""The published numbers, copied from the papers' tables, against the presets."""

from typing import Any

import pytest

from schemas.federation import Federation
from schemas.model import Model
from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS, apply_preset

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
    sites = [{"name": "a", "streams": [{"name": "s", "source": "s.txt"}]}]
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


def test_another_server_optimizer_takes_none_of_the_presets_numbers() -> None:
    fedavg = Federation.model_validate(minimal("125M", server={"optimizer": "fedavg"})).server
    assert (fedavg.lr, fedavg.momentum) == (1.0, 0.0)
    slower = Federation.model_validate(minimal("125M", server={"lr": 0.1})).server
    assert (slower.optimizer, slower.lr, slower.momentum) == ("fedmom", 0.1, 0.9)


def test_presets_are_not_changed_by_their_use() -> None:
    before = repr(FEDERATED_PRESETS)
    data = minimal("75M", server={"lr": 0.5})
    merged = apply_preset(data)
    merged["local"]["steps"] = 1
    assert repr(FEDERATED_PRESETS) == before
    assert data == minimal("75M", server={"lr": 0.5})


@pytest.mark.parametrize("preset", [None, "2B", ["75M"], {}, 75])
def test_what_is_no_preset_brings_nothing(preset: Any) -> None:
    assert apply_preset({"preset": preset, "run": "r"}) == {"preset": preset, "run": "r"}
