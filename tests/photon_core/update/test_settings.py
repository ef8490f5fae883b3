"""Which edits of the file make an update one of other settings, and how an early update is compared."""

from typing import Any

import pytest

from photon_core.errors import UpdateRejected
from photon_core.run.members import Named
from photon_core.update.settings import check_settings, other_settings, work_sha256
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.protocol import PROTOCOL
from schemas.view import view_of
from tests.conftest import merge
from tests.federations import sample, sections, site

FILE = sample(recipe=None)
SAME: list[dict[str, Any]] = [
    {"rounds": {"quorum": 2, "deadline": 60, "grace": None}},
    {"server": {"lr": 0.5}},
    {"deploy": {"timezone": "Europe/Berlin"}, "trackers": [{"name": "tensorboard", "folder": "t"}]},
    {"local": {"checkpoint_steps": 7, "micro_batch": 1, "loggers": [{"name": "file"}]}},
    {"sites": [site("a", state_dir="/elsewhere", steps=3), site("b", paused=True), site("c"), site("d")]},
    {"local": {"clip_norm": 1.0}},  # the default, spelt out
]
OTHER: list[dict[str, Any]] = [
    {"local": {"optimizer": {"lr": 1e-3}}},
    {"local": {"steps": 11}},
    {"local": {"optimizer_state": "reset"}},
    {"update": {"codec": "int8"}},
    {"update": {"clip_norm": 1.0}},
    {"update": {"clip_norm": 1.0, "noise_multiplier": 0.5}},
    {"update": {"model_dtype": "bfloat16"}},
    {"data": {"validation_share": 0.1}},
    {"seed": 18},
]


def edited(**more: Any) -> Federation:
    return Federation.model_validate(merge(sections(recipe=None), more))


def party(**more: Any) -> Named:
    return Named("a", edited(**more))


def update(federation: Federation, **changes: Any) -> UpdateManifest:
    """What a site commits that works with this file."""
    settings = federation.update
    return UpdateManifest.model_validate(
        {
            **{"run": "r", "round": 1, "site": "a", "attempt": 1, "base_sha256": "", "files": [], "tokens": 1},
            **{"codec": settings.codec_name, "clip_norm": settings.clip_norm, "steps": 1, "metrics": {}},
            **{"noise_multiplier": settings.noise_multiplier, "data_sha256": "", "versions": {}},
            **{"previous_sha256": "", "work": work_sha256(federation), "protocol": PROTOCOL, **changes},
        }
    )


@pytest.mark.parametrize("edit", SAME, ids=str)
def test_an_edit_that_does_not_change_the_work_costs_no_update(edit: dict[str, Any]) -> None:
    assert work_sha256(edited(**edit)) == work_sha256(FILE)
    assert other_settings(party(**edit), update(FILE)) == ""


@pytest.mark.parametrize("edit", OTHER, ids=str)
def test_an_edit_that_changes_the_work_makes_an_update_one_of_other_settings(edit: dict[str, Any]) -> None:
    assert "its update (attempt 1) was made with" in other_settings(party(**edit), update(FILE))


def test_a_federation_that_is_a_member_works_by_its_own_file() -> None:
    inner = {"federations": [{"name": "europe"}], "update": {"clip_norm": 1.0}, "local": {"steps": 11}}
    contribution = update(FILE, site="europe", work="")
    assert other_settings(Named("europe", edited(**inner)), contribution) == ""
    assert "update.clip_norm null, but the file has 1" in other_settings(party(**inner), contribution)


def test_an_early_update_is_compared_by_what_it_names() -> None:
    early = update(FILE, work="", protocol=0)
    assert other_settings(party(local={"steps": 11}), early) == ""
    noisy = party(update={"clip_norm": 1.0, "noise_multiplier": 0.5})
    expected = "its update (attempt 1) was made with update.noise_multiplier 0, but the file has 0.5"
    assert other_settings(noisy, early) == expected
    assert "update.clip_norm null, but the file has 1" in other_settings(party(update={"clip_norm": 1.0}), early)
    assert "work" not in early.model_dump(mode="json") and "protocol" not in early.model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "file", "reason"),
    [
        ({"protocol": PROTOCOL + 1}, FILE, "upgrade Photon at the coordinator"),
        ({}, edited(local={"steps": 11}), "the file has now; no new attempt was committed: at the deadline"),
    ],
)
def test_who_is_left_out_is_told_why(changes: dict[str, Any], file: Federation, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        check_settings(view_of(file, "a"), update(FILE, **changes), "at the deadline")
