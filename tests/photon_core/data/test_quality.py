"""The checks of a site's shards."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.data import features as features_module
from photon_core.data.prepare import prepare_site
from photon_core.data.quality import ExpectationFailed, check_shards
from photon_core.data.shared_memory import release
from photon_core.data.stream import train_dataset
from photon_core.errors import CorruptFile, DataError
from schemas.federation import Federation
from schemas.manifests import DataManifest
from schemas.view import view_of


@pytest.fixture
def prepared(two_streams: Federation) -> tuple[Federation, DataManifest]:
    return two_streams, prepare_site(view_of(two_streams, "s"))


def test_good_shards_pass_every_expectation(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    result = check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)
    assert not result.failed
    observed = {check.column: check.observed for check in result.checks}
    assert observed["highest_token"] == 256
    assert observed["shortest_sequence"] == observed["longest_sequence"] == 64
    assert observed["train_tokens"] == manifest.train_tokens
    assert observed["tokenizer_sha256"] == manifest.tokenizer_sha256


def changed(federation: Federation, section: str, **update: Any) -> Federation:
    return federation.model_copy(update={section: getattr(federation, section).model_copy(update=update)})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"vocab_size": 200}, "column highest_token: observed 256, allowed at most 199"),
    ("model", {"max_seq_len": 128}, "column shortest_sequence: observed 64, allowed at least 128"),
    ("model", {"max_seq_len": 32}, "column longest_sequence: observed 64, allowed at most 32"),
    ("data", {"max_eot_share": 0.0}, r"column eot_share: observed 0\.000\d+, allowed at most 0"),
    ("data", {"min_train_tokens": 10**9}, r"column train_tokens: observed \d+, allowed at least 1000000000"),
    ("local", {"batch_size": 10**6}, r"column train_tokens: observed \d+, allowed at least 64000000"),
]


@pytest.mark.parametrize(("section", "update", "message"), REFUSED)
def test_shards_that_are_refused(
    prepared: tuple[Federation, DataManifest], section: str, update: dict[str, Any], message: str
) -> None:
    federation, manifest = prepared
    with pytest.raises(ExpectationFailed, match=f"site 's', shards: .*expect_column_.* of {message}") as caught:
        check_shards(view_of(changed(federation, section, **update), "s"), manifest.tokenizer_sha256)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.failed == caught.value.failed


def test_another_tokenizer_is_refused(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    with pytest.raises(
        ExpectationFailed, match=f"tokenizer_sha256: observed {manifest.tokenizer_sha256}, allowed one of f{{64}}"
    ):
        check_shards(view_of(federation, "s"), "f" * 64)


def test_unchanged_shards_are_not_read_again(
    prepared: tuple[Federation, DataManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, manifest = prepared
    first = check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)
    reads: list[Any] = []
    monkeypatch.setattr("photon_core.data.verify.sha256_file", reads.append)
    monkeypatch.setattr(features_module, "read_shard", reads.append)
    assert check_shards(view_of(federation, "s"), manifest.tokenizer_sha256) == first
    assert reads == []


def test_damaged_cache_is_only_slower(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    first = check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)
    for path in view_of(federation, "s").cache_dir.iterdir():
        path.write_text("[not this]")
    assert check_shards(view_of(federation, "s"), manifest.tokenizer_sha256) == first


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["one/train/shard.00000.mds.zstd", "two/valid/index.json", "one/stream.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(_truncate, "bytes, .* expected: truncated"), (_flip, "corrupt"), (Path.unlink, "missing")],
)
def test_damaged_file_is_named(
    prepared: tuple[Federation, DataManifest], name: str, damage: Callable[[Path], None], message: str
) -> None:
    federation, manifest = prepared
    check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)
    damage(view_of(federation, "s").data_dir / name)
    with pytest.raises(CorruptFile, match=f"{name}.*{message}.*site 's'.*run photon prepare --site s"):
        check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)


def test_damaged_unpacked_copy_is_removed_and_made_again(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    dataset = train_dataset(view_of(federation, "s"), 1)
    assert len(list(dataset)) == dataset.size
    release(dataset)
    raw = view_of(federation, "s").split_dir("one", "train") / "shard.00000.mds"
    content = raw.read_bytes()
    assert check_shards(view_of(federation, "s"), manifest.tokenizer_sha256).notes == []
    before = raw.stat()
    _flip(raw)
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (note,) = check_shards(view_of(federation, "s"), manifest.tokenizer_sha256).notes
    assert "one/train/shard.00000.mds: the unpacked copy was damaged" in note
    dataset = train_dataset(view_of(federation, "s"), 1)
    assert len(list(dataset)) == dataset.size
    release(dataset)
    assert raw.read_bytes() == content


def test_manifest_cannot_name_files_outside(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    path = view_of(federation, "s").data_dir / "data.json"
    path.write_text(path.read_text().replace("one/train/index.json", "../../outside"))
    with pytest.raises(CorruptFile, match=r"names '\.\./\.\./outside', outside its own folder"):
        check_shards(view_of(federation, "s"), manifest.tokenizer_sha256)


def test_stream_that_is_not_prepared_is_named(prepared: tuple[Federation, DataManifest]) -> None:
    federation, manifest = prepared
    site = federation.sites[0]
    streams = [*site.streams, site.streams[0].model_copy(update={"name": "new"})]
    more = federation.model_copy(update={"sites": [site.model_copy(update={"streams": streams})]})
    with pytest.raises(DataError, match="stream 'new' is in the federation file but not prepared"):
        check_shards(view_of(more, "s"), manifest.tokenizer_sha256)
