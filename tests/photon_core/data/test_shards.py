"""Prepared shards in a place of the site's own: every machine has the same, and nothing is overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.data.manifest import NAME
from photon_core.data.prepare import prepare_site
from photon_core.data.quality import check_shards
from photon_core.data.shards import available, stage
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile, DataError, PhotonError
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.view import view_of


@pytest.fixture(params=["folder", "s3"])
def at_site(
    request: pytest.FixtureRequest, two_streams: Federation, tmp_path: Path
) -> Callable[[str], Federation]:
    """Function: the federation as on a machine of the site; each machine has its own disk."""
    if request.param == "s3":
        bucket, endpoint = request.getfixturevalue("s3_bucket"), request.getfixturevalue("s3_endpoint")
        place = {"shards": f"s3://{bucket}/shards", "storage": {"endpoint_url": endpoint}}
    else:
        place = {"shards": str(tmp_path / "shared" / "shards")}

    def machine(name: str) -> Federation:
        data = two_streams.model_dump()
        data["sites"][0] |= {**place, "state_dir": str(tmp_path / name)}
        return Federation.model_validate(data)

    return machine


def contents(federation: Federation) -> dict[str, bytes]:
    root = view_of(federation, "s").data_dir
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def place_of(federation: Federation) -> Store:
    shards = view_of(federation, "s").section.shards
    assert shards
    return Store(shards, **view_of(federation, "s").options(shards))


def test_another_machine_has_the_same_shards(at_site: Callable[[str], Federation]) -> None:
    first, second = at_site("first"), at_site("second")
    assert available(view_of(second, "s")) is None
    made = prepare_site(view_of(first, "s"))
    assert available(view_of(second, "s")) == made
    check_shards(view_of(second, "s"), load_tokenizer("bytes").sha256)
    assert contents(second) == contents(first)
    prepare_site(view_of(first, "s"))
    assert len(place_of(first).ls("")) == 1


def test_what_was_prepared_anew_counts_and_the_old_stays_there(
    at_site: Callable[[str], Federation], tmp_path: Path, library_texts: Callable[..., list[str]]
) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    stage(view_of(second, "s"))
    before = contents(second)
    (tmp_path / "raw" / "two" / "more.txt").write_text("\n".join(library_texts("string")))
    prepare_site(view_of(first, "s"))
    stage(view_of(second, "s"))
    assert contents(second) == contents(first) != before
    assert [name.partition("-")[0] for name in place_of(first).ls("")] == ["0001", "0002"]


def test_an_upload_that_was_cut_off_is_not_seen_and_goes_on(at_site: Callable[[str], Federation]) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    place = place_of(first)
    (folder,) = place.ls("")
    place.discard(f"{folder}/{NAME}")
    place.discard(f"{folder}/one/train/index.json")
    assert available(view_of(second, "s")) is None
    prepare_site(view_of(first, "s"))
    assert place.ls("") == [folder]
    stage(view_of(second, "s"))
    assert contents(second) == contents(first)


def test_what_is_damaged_here_is_copied_again(at_site: Callable[[str], Federation]) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    stage(view_of(second, "s"))
    root = view_of(second, "s").data_dir
    next((root / "one" / "train").glob("shard*")).write_bytes(b"x")
    (root / "two" / "valid" / "index.json").unlink()
    check_shards(view_of(second, "s"), load_tokenizer("bytes").sha256)
    assert contents(second) == contents(first)


def test_what_is_damaged_there_is_named(at_site: Callable[[str], Federation]) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    place = place_of(first)
    (folder,) = place.ls("")
    broken = f"{folder}/two/stream.json"
    size = place.size(broken)
    place.discard(broken)
    place.create(broken, b"x" * size)
    with pytest.raises(CorruptFile, match=r"two/stream\.json has sha256"):
        stage(view_of(second, "s"))
    assert not (view_of(second, "s").data_dir / NAME).exists()


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "one/../../outside"])
def test_a_manifest_cannot_leave_its_folder(at_site: Callable[[str], Federation], path: str) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    place = place_of(first)
    (folder,) = place.ls("")
    manifest = json.loads(place.read(f"{folder}/{NAME}"))
    manifest["streams"]["one"]["files"][0]["path"] = path
    place.create(f"0002-{'0' * 16}/{NAME}", json.dumps(manifest).encode())
    with pytest.raises(PhotonError, match="is not a path inside the store"):
        stage(view_of(second, "s"))


def test_a_manifest_that_is_none_is_named(at_site: Callable[[str], Federation]) -> None:
    federation = at_site("first")
    place_of(federation).create(f"0001-{'0' * 16}/{NAME}", b"{}")
    with pytest.raises(DataError, match=r"0001-0000000000000000/data\.json: not a data manifest"):
        available(view_of(federation, "s"))


def test_without_such_a_place_nothing_is_copied(two_streams: Federation) -> None:
    made = prepare_site(view_of(two_streams, "s"))
    assert available(view_of(two_streams, "s")) == made
    shutil.rmtree(view_of(two_streams, "s").data_dir)
    stage(view_of(two_streams, "s"))
    assert available(view_of(two_streams, "s")) is None


def test_what_a_machines_owner_has_put_beside_the_shards_stays(at_site: Callable[[str], Federation]) -> None:
    """While the shards are copied, and copied again because the text has changed."""
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    names = {"mine.txt", "one/mine.txt", "more/train/shard.00000.mds.zstd"}
    mine = [view_of(second, "s").data_dir / name for name in names]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    check_shards(view_of(second, "s"), load_tokenizer("bytes").sha256)
    source = Path(first.sites[0].streams[1].source).parent
    (source / "more.txt").write_text("Another document, which was not there before. " * 9)
    prepare_site(view_of(first, "s"))
    check_shards(view_of(second, "s"), load_tokenizer("bytes").sha256)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    ours = contents(first).keys() - {".photon"}
    assert contents(second).keys() == ours | names


def test_a_copy_that_fails_leaves_the_old_shards_usable(at_site: Callable[[str], Federation]) -> None:
    first, second = at_site("first"), at_site("second")
    prepare_site(view_of(first, "s"))
    stage(view_of(second, "s"))
    before = contents(second)
    source = Path(first.sites[0].streams[1].source).parent
    (source / "more.txt").write_text("Another document, which was not there before. " * 9)
    prepare_site(view_of(first, "s"))
    place = place_of(first)
    folder = place.ls("")[-1]
    place.discard(f"{folder}/two/stream.json")
    with pytest.raises(CorruptFile, match="is missing"):
        stage(view_of(second, "s"))
    assert {name: data for name, data in contents(second).items() if not name.startswith(".next/")} == before
