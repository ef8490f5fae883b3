"""Key layers: how many blocks they are, which parameters, and what is refused."""

import math
import re

import pytest

from photon_core.errors import FederationError
from photon_core.model.key_layers import grouped, key_layers, key_parameters, layer_of, without
from photon_core.model.shapes import parameter_count, parameter_shapes
from schemas.sections.model import Model
from schemas.sections.worldlm import WorldLM
from tests.federations import sample

SMALL = Model(n_layers=3, d_model=32, n_heads=2, vocab_size=257)


def layers(n_layers: int, **worldlm: object) -> list[str]:
    model = Model(n_layers=n_layers, d_model=32, n_heads=2, vocab_size=257)
    return list(grouped(key_parameters(model, WorldLM.model_validate(worldlm))))


@pytest.mark.parametrize(
    ("n_layers", "count"), [(1, 1), (2, 1), (3, 1), (5, 2), (12, 4), (15, 5), (24, 7), (32, 10)]
)
def test_the_last_blocks_about_30_percent(n_layers: int, count: int) -> None:
    assert set(layers(n_layers)) == {f"blocks.{n}" for n in range(n_layers - count, n_layers)}


def test_the_share_is_rounded_to_the_nearest_number() -> None:
    assert [len(layers(n)) for n in range(1, 60)] == [max(1, (3 * n + 5) // 10) for n in range(1, 60)]


@pytest.mark.parametrize(
    ("preset", "share"), [("75M", 0.129), ("125M", 0.226), ("350M", 0.248), ("1.3B", 0.268), ("7B", 0.302)]
)
def test_their_share_of_all_parameters(preset: str, share: float) -> None:
    model = Model.model_validate({"preset": preset})
    shapes = parameter_shapes(model)
    count = sum(math.prod(shapes[name]) for name in key_parameters(model, WorldLM()))
    assert round(count / parameter_count(model), 3) == share


def test_a_number_of_blocks_or_none() -> None:
    assert layers(12, key_layers=2) == ["blocks.10", "blocks.11"]
    assert layers(12, key_layers=12) == sorted(f"blocks.{n}" for n in range(12))
    assert layers(12, key_layers=0) == []
    assert layers(12, key_layers=0.99) == sorted(f"blocks.{n}" for n in range(12))


def test_names_of_blocks_and_of_parameters() -> None:
    """A block's name is no prefix of another's; a parameter outside of all blocks is a layer by itself."""
    named = ["blocks.1", "wte.weight", "blocks.0.ffn", "norm_f"]
    found = grouped(key_parameters(SMALL.model_copy(update={"n_layers": 12}), WorldLM(key_layers=named)))
    assert list(found) == ["blocks.0", "blocks.1", "norm_f.bias", "norm_f.weight", "wte.weight"]
    assert len(found["blocks.1"]) == 12 and found["wte.weight"] == ["wte.weight"]
    assert found["blocks.0"] == [
        f"blocks.0.ffn.{name}" for name in ("down_proj.bias", "down_proj.weight", "up_proj.bias", "up_proj.weight")
    ]


def test_layers_and_their_parameters_are_in_the_order_of_names() -> None:
    found = grouped(reversed(list(parameter_shapes(SMALL))))
    assert list(found) == sorted(found) and all(names == sorted(names) for names in found.values())
    assert {name for names in found.values() for name in names} == set(parameter_shapes(SMALL))
    assert all(layer_of(name) == layer for layer, names in found.items() for name in names)


def test_the_rest_is_the_backbone() -> None:
    shapes = parameter_shapes(SMALL)
    found = without(shapes, grouped(key_parameters(SMALL, WorldLM())))
    assert found == {name for name in shapes if not name.startswith("blocks.2.")}


def test_of_a_federation() -> None:
    assert key_layers(sample()) == {}
    assert list(key_layers(sample(worldlm={}))) == ["blocks.0"]
    assert key_layers(sample(worldlm={"key_layers": 0})) == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (4, "worldlm.key_layers: 4 blocks, but the model has 3; write at most that"),
        (
            ["blocks.2", "blocks.3"],
            "worldlm.key_layers: the model has no parameter 'blocks.3'; write names such as 'blocks.2' or "
            "'wte.weight', or a number of blocks",
        ),
        (["blocks.2.ff"], "the model has no parameter 'blocks.2.ff'; write names such as"),
    ],
)
def test_what_the_model_does_not_have(asked: int | list[str], message: str) -> None:
    with pytest.raises(FederationError, match=re.escape(message)):
        key_parameters(SMALL, WorldLM(key_layers=asked))
