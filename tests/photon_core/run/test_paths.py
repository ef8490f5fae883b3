"""Places and paths are each other's inverses, and the paths of stores that exist do not change."""

import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photon_core.errors import PhotonError
from photon_core.run.paths import PARTS, Place, PlaceKind, place_at

LETTERS = string.ascii_letters + string.digits
NAMES = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "._-", max_size=8)) | st.sampled_from(
    ["rounds", "sites", "members", "000001", "0001", "run.json", "round.json", "x" * 63]
)
NUMBERS = st.integers(0, 10**9)
DIGITS = "0123456789abcdef"
SHARDS = st.builds(
    lambda stem, n, of, end: f"{stem}{n:05d}-of-{of:05d}{end}.safetensors",
    st.sampled_from(["", "moments-", "exp_avg-", "blocks.3-", "blocks.31-", "norm_f.weight-", "wpe.weight-"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from(["", "-0a1b2c3d", "-0a1b2c3d4e5f6071"]),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("t", "attempt", "region", "number"), NUMBERS),
    "run": NAMES | st.lists(NAMES, min_size=2, max_size=4).map("/members/".join),
    "site": NAMES,
    "part": st.sampled_from(["model", "optimizer", "moments", "download", "residuals"]),
    "inputs": st.text(DIGITS, min_size=16, max_size=16),
    "content": st.text(DIGITS, min_size=16, max_size=16),
    "work": st.text(DIGITS, min_size=32, max_size=32),
    "shard": SHARDS,
    "rest": st.lists(NAMES, min_size=1, max_size=5).map("/".join),
}
assert set(VALUES) == set(PARTS)


@st.composite
def places(draw: st.DrawFn) -> Place:
    kind = draw(st.sampled_from(PlaceKind))
    names = [name for name in PARTS if f"{{{name}}}" in kind.value]
    return Place(kind, **{name: draw(VALUES[name]) for name in names})


@given(places())
def test_a_place_is_read_back_from_its_path(place: Place) -> None:
    found = place_at(place.path)
    assert found == place or (place.kind is PlaceKind.OTHER and found is not None and found.path == place.path)


WORDS = st.sampled_from(
    ["run", "rounds", "000001", "0000001", "1000000", "sites", "a", "0001", "00001", "10000", "regions", "members",
     "0123456789abcdef", "model", "00001-of-00001.safetensors", "update.json", "partial.json", "round.json", "..",
     "evaluation-0123456789abcdef.json", "finished", "٠٠٠٠٠١", "\n", ""]
)  # fmt: skip


@given(st.lists(WORDS, max_size=9).map("/".join) | st.text(max_size=30))
def test_a_path_is_written_again_as_it_was_read(path: str) -> None:
    place = place_at(path)
    assert place is None or place.path == path


AT = Place(PlaceKind.MEAN, "wiki.2", 7, "site-a", 12, 3, "0123456789abcdef")


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (Place(PlaceKind.RUN_JSON, "wiki.2"), "wiki.2/run.json"),
        (Place(PlaceKind.NOISE_KEY, "wiki.2"), "wiki.2/noise.key"),
        (Place(PlaceKind.ROUND_JSON, "wiki.2", 7), "wiki.2/rounds/000007/round.json"),
        (Place(PlaceKind.ROUND_JSON, "wiki.2", 1_234_567), "wiki.2/rounds/1234567/round.json"),
        (Place(PlaceKind.REMOVED, "wiki.2", 7), "wiki.2/rounds/000007/removed.json"),
        (Place(PlaceKind.REPORT, "wiki.2", 7), "wiki.2/rounds/000007/report.html"),
        (Place(PlaceKind.ROUND_PART, "wiki.2", 0, part="model"), "wiki.2/rounds/000000/model"),
        (
            Place(PlaceKind.FINISHED, "wiki.2", 7, work="0123456789abcdef" * 2, number=1),
            "wiki.2/rounds/000007/finished/0123456789abcdef0123456789abcdef/00001.json",
        ),
        (replace(AT, kind=PlaceKind.SITE), "wiki.2/rounds/000007/sites/site-a"),
        (
            replace(AT, kind=PlaceKind.EVALUATION, content="fedcba9876543210"),
            "wiki.2/rounds/000007/sites/site-a/evaluation-fedcba9876543210.json",
        ),
        (replace(AT, kind=PlaceKind.ATTEMPT), "wiki.2/rounds/000007/sites/site-a/0012"),
        (replace(AT, kind=PlaceKind.UPDATE), "wiki.2/rounds/000007/sites/site-a/0012/update.json"),
        (replace(AT, kind=PlaceKind.START, t=0), "wiki.2/rounds/000000/sites/site-a/0012/start.json"),
        (replace(AT, kind=PlaceKind.REGION), "wiki.2/rounds/000007/regions/0003/0123456789abcdef"),
        (AT, "wiki.2/rounds/000007/regions/0003/0123456789abcdef/0012"),
        (
            replace(AT, kind=PlaceKind.PARTIAL),
            "wiki.2/rounds/000007/regions/0003/0123456789abcdef/0012/partial.json",
        ),
        (
            replace(AT, kind=PlaceKind.COSINES, content="fedcba9876543210"),
            "wiki.2/rounds/000007/regions/0003/0123456789abcdef/0012/cosines-fedcba9876543210.json",
        ),
    ],
)
def test_paths_of_stores_that_exist(place: Place, path: str) -> None:
    assert place.path == path


def test_a_key_layers_files_have_its_name() -> None:
    shard = Place(PlaceKind.UPDATE_SHARD, "r", 1, "s", 1, shard="blocks.3-00001-of-00002-0a1b2c3d.safetensors")
    assert shard.path == "r/rounds/000001/sites/s/0001/blocks.3-00001-of-00002-0a1b2c3d.safetensors"
    part = Place(PlaceKind.ROUND_SHARD, "r", 1, part="model", shard="norm_f.bias-00001-of-00001.safetensors")
    assert place_at(part.path) == part
    other = place_at("r/rounds/000001/model/my.model-00001-of-00001.safetensors")
    assert other is not None and other.kind is PlaceKind.OTHER, "a name that not ours has"


def test_a_nested_run_has_a_place() -> None:
    place = Place(PlaceKind.UPDATE, "world/members/europe", 3, "berlin", 1)
    assert place.path == "world/members/europe/rounds/000003/sites/berlin/0001/update.json"
    assert place_at(place.path) == place


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t": -1}, "there is no round -1: rounds count from 0"),
        ({"site": "../x"}, "'../x' cannot name a site"),
        ({"run": "a/b"}, "'a/b' cannot name a run"),
        ({"attempt": -1}, "'-001' cannot be the attempt of a path of run 'r'"),
        ({"site": ""}, "'' cannot name a site"),
    ],
)
def test_what_cannot_be_part_of_a_path(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PhotonError, match=message):
        _ = replace(Place(PlaceKind.UPDATE, "r", 1, "s", 1), **fields).path
