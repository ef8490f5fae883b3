"""A federation's place in a tree: what `federations` and `parent` bring; files without them stay as they were."""

from typing import Any

import pytest
from pydantic import ValidationError

from photon_core.run.provenance import federation_sha256
from photon_core.update.settings import work_sha256
from schemas.federation import Federation
from schemas.presets import RECIPES
from schemas.sections.worldlm import WorldLM
from tests.federations import sample, sections, site

PARENT = {"store": "/world", "run": "world", "member": "europe"}
EUROPE = {"name": "europe", "federation": "/files/europe.yaml"}


def child(**more: Any) -> Federation:
    return Federation.model_validate(sections(**{"parent": PARENT, "rounds": {}, **more}))


@pytest.mark.parametrize(
    ("file", "work", "whole"),
    [
        ({}, "2d0cc5aaa41fe4e9", "157b59ad8ce17f59"),
        ({"recipe": None}, "272f8406852489d5", "63536b8f264dbd8c"),
        ({"preset": "125M", "model": {"vocab_size": 257}}, "438703d45cbf5c1c", "d82f16cbbd26e59e"),
    ],
)
def test_files_of_no_tree_have_the_hashes_that_they_had_before_trees(
    file: dict[str, Any], work: str, whole: str
) -> None:
    """Taken from a Photon that knew no trees."""
    federation = sample(**file)
    assert (work_sha256(federation)[:16], federation_sha256(federation)[:16]) == (work, whole)
    assert not {"worldlm", "federations", "parent"} & federation.model_dump().keys()
    assert not {"worldlm", "federations", "parent"} & federation.model_dump(exclude={"sites": True}).keys()


@pytest.mark.parametrize("recipe", [*RECIPES, None])
@pytest.mark.parametrize("preset", [None, "125M"])
def test_below_a_parent_the_server_is_plain_averaging_without_an_end(
    recipe: str | None, preset: str | None
) -> None:
    federation = child(recipe=recipe, preset=preset)
    server = federation.server
    assert (server.optimizer, server.lr, server.momentum) == ("fedavg", 1.0, 0.0)
    assert federation.rounds.count is None and federation.total_rounds == 10**9
    alone = sample(recipe=recipe, preset=preset, rounds={"count": 500})
    assert federation.local == alone.local, "all else is the recipe's"


def test_below_a_parent_the_file_s_own_rate_and_schedule_count() -> None:
    server = {"lr": 0.5, "schedule": {"name": "linear", "total_rounds": 7}}
    federation = child(server=server, local={"steps": 10, "batch_size": 2, "schedule": {"total_steps": 40}})
    assert (federation.server.optimizer, federation.server.lr, federation.schedule_steps) == ("fedavg", 0.5, 40)


def test_in_a_tree_there_are_key_layers_unless_the_file_says_otherwise() -> None:
    assert sample().worldlm is None and sample().key_layers == 0
    for federation in (child(), sample(federations=[EUROPE]), sample(worldlm={})):
        assert federation.worldlm == WorldLM() and federation.key_layers == 0.3
    assert child(worldlm={"key_layers": 0}).key_layers == 0


@pytest.mark.parametrize(("worldlm", "weights"), [({}, "uniform"), ({"weights": "tokens"}, "tokens")])
def test_both_means_have_the_same_weights(worldlm: dict[str, Any], weights: str) -> None:
    assert sample(worldlm=worldlm).server.weights == weights
    assert child(worldlm=worldlm, server={"lr": 0.5}).server.weights == weights
    assert sample(worldlm=worldlm, server={"optimizer": "fedadam", "lr": 0.1}).server.weights == weights
    assert sample(worldlm=worldlm, server={"weights": weights}).server.weights == weights
    assert sample().server.weights == "tokens"


def test_federations_may_be_the_only_members() -> None:
    asia = {"name": "asia", "pool": "far", "paused": True, "data_tokens": 7}
    data = sections(federations=[EUROPE, asia])
    del data["sites"]
    federation = Federation.model_validate(data)
    assert (federation.sites, federation.active, federation.paused) == ([], ["europe"], ["asia"])
    assert (federation.sites_per_round, federation.quorum) == (1, 1)


def test_members_of_both_kinds_count() -> None:
    federation = sample(federations=[{**EUROPE, "pool": "p"}], sites=[site("a"), site("b", paused=True, pool="q")])
    assert [one.name for one in federation.members] == ["a", "b", "europe"]
    assert (federation.active, federation.paused) == (["a", "europe"], ["b"])
    assert (federation.sites_per_round, federation.quorum) == (2, 2)
    assert federation.named_pools == {"p", "q"}


@pytest.mark.parametrize(
    "federation",
    [
        child(),
        child(federations=[EUROPE]),
        sample(federations=[EUROPE]),
        sample(worldlm={"key_layers": ["blocks.0"]}),
    ],
    ids=["child", "both", "root", "flat"],
)
def test_it_survives_json(federation: Federation) -> None:
    assert Federation.model_validate(federation.model_dump(mode="json")) == federation
    assert Federation.model_validate_json(federation.model_dump_json()) == federation


@pytest.mark.parametrize("asked", [0, 1, 0.3, ["blocks.0", "norm.weight"]])
def test_key_layers_are_a_share_a_number_or_names(asked: Any) -> None:
    assert sample(worldlm={"key_layers": asked}).key_layers == asked


@pytest.mark.parametrize(
    ("worldlm", "error"),
    [
        (
            {"temperature": "auto", "attention": "mean"},
            "with cosine, but attention is mean; write attention: cosine",
        ),
        ({"temperature": "auto", "attention": "dot"}, "with cosine, but attention is dot"),
        ({"temperature": "auto", "own_row": False}, "auto also tries the own row, which own_row: false excludes"),
        ({"temperature": -1}, "is not a temperature; write auto, or a number of at least 0"),
        ({"temperature": "Auto"}, "is not a temperature; write auto"),
        ({"temperature": float("nan")}, "is not a temperature"),
    ],
)
def test_temperatures_that_contradict_are_refused(worldlm: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        sample(worldlm=worldlm)
    assert sample(worldlm={"temperature": "auto"}).worldlm == WorldLM(temperature="auto")


def test_without_key_layers_the_backbone_is_averaged_as_in_any_federation() -> None:
    means = {"server": {"mean": "median"}, "update": {"model_dtype": "bfloat16"}}
    assert sample(worldlm={"key_layers": 0}, **means).server.mean == "median"
    with pytest.raises(ValidationError, match="median is for whole models"):
        sample(worldlm={}, **means)


def test_what_only_the_coordinator_reads_of_it_changes_no_site_s_work() -> None:
    """Key layers and attention do; the list of members and the parent do not."""
    work = work_sha256(child())
    same = {"residuals": "off", "rounds": 3, "weights": "tokens"}
    assert work_sha256(child(worldlm=same, federations=[EUROPE], parent={**PARENT, "run": "other"})) == work
    for other in ({"key_layers": 1}, {"temperature": 0.5}, {"attention": "mean"}, {"own_row": False}):
        assert work_sha256(child(worldlm=other)) != work
