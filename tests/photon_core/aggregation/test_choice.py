"""The choice of `temperature: auto`: the lowest loss, the same everywhere, and what each option gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photon_core.aggregation.attention import attend
from photon_core.aggregation.choice import OPTIONS, choose, mean_losses, settled, with_choice
from photon_core.aggregation.sums import Sums
from schemas.manifests import Attention
from schemas.sections.worldlm import WorldLM

AUTO = WorldLM(temperature="auto")
# of the rows (1, 0), (0, 1), (-1, 0)
THREE = Sums(np.array([[1.0, 0.0, -1.0]]), np.ones(3), 2)
losses_of_all = st.dictionaries(st.sampled_from(list(OPTIONS)), st.floats(0, 100), min_size=1)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("own", [1, 0, 0]),
        ("0.3", [0.892768, 0.096748, 0.010484]),
        ("1", [0.562742, 0.288921, 0.148337]),
        ("3", [0.409514, 0.327913, 0.262573]),
        ("mean", [1 / 3, 1 / 3, 1 / 3]),
        ("parent", [0, 1, 0]),
    ],
)
def test_the_weights_of_each_option(option: str, expected: list[float]) -> None:
    """Golden values, computed independently: the mean of the other cosines is -1/2, so the unit is 3/2."""
    found = attend(["own", "parent", "x"], THREE, AUTO, option=option)
    assert found.weights == pytest.approx(expected, abs=2e-6)
    assert list(OPTIONS) == ["own", "0.3", "1", "3", "mean", "parent"]


def test_without_a_choice_the_temperature_is_1() -> None:
    assert attend(["own", "parent", "x"], THREE, AUTO) == attend(["own", "parent", "x"], THREE, WorldLM())
    other = WorldLM(temperature=0.5)
    assert all(settled(other, option) is other for option in OPTIONS)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({"own": 2.0, "0.3": 1.5, "1": 1.0, "3": 1.25, "mean": 1.5, "parent": 3.0}, "1"),
        ({"parent": 1.0, "mean": 1.0, "3": 1.0, "1": 1.0, "0.3": 1.0, "own": 1.0}, "own"),
        ({"parent": 1.0, "mean": 1.0, "3": 1.0, "0.3": 1.5}, "3"),
        ({"parent": 1.0, "mean": 1.5}, "parent"),
    ],
)
def test_the_lowest_loss_is_chosen_and_of_equals_the_first(losses: dict[str, float], chosen: str) -> None:
    assert choose(losses) == chosen


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(losses_of_all)
def test_no_option_has_a_lower_loss(losses: dict[str, float]) -> None:
    chosen = choose(losses)
    assert all(losses[chosen] <= loss for loss in losses.values())
    assert choose(dict(reversed(losses.items()))) == chosen


def test_members_losses_count_by_tokens_and_only_of_those_that_evaluated_all() -> None:
    scores = {
        "own": {
            "a": {"loss": 1.0, "tokens": 30.0},
            "b": {"loss": 3.0, "tokens": 10.0},
            "c": {"loss": 0.0, "tokens": 9.0},
        },
        "mean": {"a": {"loss": 2.0, "tokens": 30.0}, "b": {"loss": 1.0, "tokens": 10.0}},
    }
    assert mean_losses(scores) == {"own": 1.5, "mean": 1.75}
    assert mean_losses({"own": scores["own"], "mean": {}}) == {}


def test_all_key_layers_have_the_choice_and_manifests_without_one_keep_their_bytes() -> None:
    plain = Attention(rows=["own"], scores=[1.0], weights=[1.0], tau=1.0)
    assert plain.model_dump().keys() == {"rows", "scores", "weights", "tau", "norm", "distances"}
    losses = {"own": 2.0, "1": 1.0}
    found = with_choice({"blocks.1": plain, "blocks.2": plain}, losses)
    assert {(one.chosen, tuple(one.losses.items())) for one in found.values()} == {("1", tuple(losses.items()))}
    assert Attention.model_validate_json(found["blocks.1"].model_dump_json()) == found["blocks.1"]
