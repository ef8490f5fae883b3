"""Preparation: what is written, that it is done once, and what a kill leaves."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.expectations import ExpectationFailed
from photon_core.data.manifest import data_sha256
from photon_core.data.mds import read_index, read_shard
from photon_core.data.prepare import load_manifest, prepare_site, unigram_perplexity
from photon_core.data.quality import check_shards
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile, DataError, FederationError
from schemas.federation import Federation
from schemas.view import view_of


def tokens_of(federation: Federation, stream: str, split: str) -> np.ndarray:
    return np.concatenate(
        [read_shard(s)[1] for s in read_index(view_of(federation, "s").split_dir(stream, split))]
    )


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_shards_hold_the_documents(two_streams: Federation, library_texts: Callable[..., list[str]]) -> None:
    manifest = prepare_site(view_of(two_streams, "s"))
    texts = library_texts("socket", "queue")
    tokenizer = load_tokenizer("bytes")
    found = {split: tokens_of(two_streams, "one", split) for split in ("train", "valid")}
    assert {ids.shape[1] for ids in found.values()} == {64}
    # every document is whole in one split, but for the tail that fills no sequence
    joined = {split: tokenizer.decode([i if i != 256 else 0 for i in ids.ravel()]) for split, ids in found.items()}
    whole = [text for text in texts if any(text in content for content in joined.values())]
    assert len(whole) >= len(texts) - 2
    assert not any(text in joined["train"] and text in joined["valid"] for text in whole)
    ends = sum(int((ids == 256).sum()) for ids in found.values())
    assert len(texts) - 2 <= ends <= len(texts)
    dropped = manifest.checks["one"]["dropped_tokens"]
    assert all(0 <= n < 64 for n in dropped.values())
    size = sum(len(text.encode()) + 1 for text in texts)
    assert sum(ids.size for ids in found.values()) + sum(dropped.values()) == size


def test_manifest_counts(two_streams: Federation, library_texts: Callable[..., list[str]]) -> None:
    manifest = prepare_site(view_of(two_streams, "s"))
    assert manifest == load_manifest(view_of(two_streams, "s"))
    assert (manifest.site, manifest.sequence_length, manifest.vocab_size) == ("s", 64, 257)
    documents = sum(stream.documents for stream in manifest.streams.values())
    assert documents == manifest.train_documents + manifest.valid_documents
    assert documents == len(library_texts("socket", "queue")) + len(library_texts("heapq", "bisect"))
    assert manifest.train_tokens == manifest.train_sequences * 64
    for split, sequences in (("train", manifest.train_sequences), ("valid", manifest.valid_sequences)):
        assert sequences == sum(len(tokens_of(two_streams, name, split)) for name in ("one", "two"))
    assert 10 < manifest.unigram_perplexity < 60
    root = view_of(two_streams, "s").data_dir
    named = {file.path for stream in manifest.streams.values() for file in stream.files}
    assert named | {"data.json", ".photon"} == set(files_below(root))
    assert all(check["success"] for stream in manifest.checks.values() for check in stream["documents"])


def test_ids_run_through_the_training_split(two_streams: Federation) -> None:
    prepare_site(view_of(two_streams, "s"))
    shards = read_index(view_of(two_streams, "s").split_dir("two", "train"))
    ids = np.concatenate([read_shard(shard)[0] for shard in shards])
    assert ids.tolist() == list(range(len(ids)))


def test_twice_does_nothing_the_second_time(two_streams: Federation) -> None:
    steps: list[str] = []
    first = prepare_site(view_of(two_streams, "s"), lambda what, *_: steps.append(what))
    assert steps
    before = files_below(view_of(two_streams, "s").data_dir)
    steps.clear()
    assert prepare_site(view_of(two_streams, "s"), lambda what, *_: steps.append(what)) == first
    assert steps == []
    assert files_below(view_of(two_streams, "s").data_dir) == before


def test_same_text_gives_the_same_data(two_streams: Federation) -> None:
    prepare_site(view_of(two_streams, "s"))
    first = data_sha256(view_of(two_streams, "s"))
    shutil.rmtree(view_of(two_streams, "s").data_dir)
    prepare_site(view_of(two_streams, "s"))
    assert data_sha256(view_of(two_streams, "s")) == first


def test_a_changed_source_is_prepared_again_and_the_other_kept(two_streams: Federation) -> None:
    first = prepare_site(view_of(two_streams, "s"))
    root = view_of(two_streams, "s").data_dir
    kept = files_below(root / "one")
    source = Path(two_streams.sites[0].streams[1].source).parent
    (source / "more.txt").write_text("Another document, which was not there before. " * 9)
    second = prepare_site(view_of(two_streams, "s"))
    assert second.streams["two"].documents == first.streams["two"].documents + 1
    assert second.settings_sha256 != first.settings_sha256
    assert files_below(root / "one") == kept


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_repaired_by_preparing_again(two_streams: Federation, damage: str) -> None:
    first = prepare_site(view_of(two_streams, "s"))
    root = view_of(two_streams, "s").data_dir
    shard = root / "two" / "train" / "shard.00000.mds.zstd"
    content = shard.read_bytes()
    if damage == "truncate":
        shard.write_bytes(content[:-1])
    elif damage == "flip":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        shard.unlink()
    else:
        (root / "data.json").write_text("{")
    with pytest.raises((CorruptFile, DataError), match=r"shard\.00000\.mds\.zstd|data\.json"):
        check_shards(view_of(two_streams, "s"), first.tokenizer_sha256)
    assert prepare_site(view_of(two_streams, "s")) == first
    assert shard.read_bytes() == content


def _prepare_and_die(federation: Federation, moment: str) -> None:
    def die(what: str, _done: int, _total: int) -> None:
        if what.startswith(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    prepare_site(view_of(federation, "s"), die)


@pytest.mark.parametrize("moment", ["one: checking", "one: tokenising", "two: checking", "two: tokenising"])
def test_killed_and_continued(two_streams: Federation, moment: str) -> None:
    import streaming  # noqa: F401  imported here so that the forked child need not

    child = multiprocessing.get_context("fork").Process(target=_prepare_and_die, args=(two_streams, moment))
    child.start()
    child.join(200)
    assert child.exitcode == -signal.SIGKILL
    root = view_of(two_streams, "s").data_dir
    assert load_manifest(view_of(two_streams, "s")) is None
    one = files_below(root / ".next" / "one")
    assert ("stream.json" in one) == moment.startswith("two")
    manifest = prepare_site(view_of(two_streams, "s"))
    if moment.startswith("two"):
        assert files_below(root / "one") == one
    named = {file.path for stream in manifest.streams.values() for file in stream.files}
    assert named | {"data.json", ".photon"} == set(files_below(root))
    shutil.rmtree(root)
    assert prepare_site(view_of(two_streams, "s")) == manifest


@pytest.mark.parametrize("moment", ["one: checking", "two: tokenising"])
def test_a_kill_while_a_change_is_prepared_leaves_the_old_shards_usable(
    two_streams: Federation, moment: str
) -> None:
    first = prepare_site(view_of(two_streams, "s"))
    before = files_below(view_of(two_streams, "s").data_dir)
    changed = two_streams.model_copy(update={"seed": 18})
    child = multiprocessing.get_context("fork").Process(target=_prepare_and_die, args=(changed, moment))
    child.start()
    child.join(200)
    assert child.exitcode == -signal.SIGKILL
    after = files_below(view_of(two_streams, "s").data_dir)
    assert {path: stat for path, stat in after.items() if not path.startswith(".next/")} == before
    assert not check_shards(view_of(two_streams, "s"), first.tokenizer_sha256).failed
    second = prepare_site(view_of(changed, "s"))
    named = {file.path for stream in second.streams.values() for file in stream.files}
    assert named | {"data.json", ".photon"} == set(files_below(view_of(two_streams, "s").data_dir))


def test_duplicates_stay_in_one_split(
    tmp_path: Path, make_federation: Callable[..., Federation], write_jsonl: Callable[..., Path]
) -> None:
    texts = [f"document number {i} " * 20 for i in range(40)]
    source = write_jsonl(tmp_path / "a.jsonl", texts + texts)
    federation = make_federation({"a": str(source)}, data={"max_duplicate_share": 0.5})
    prepare_site(view_of(federation, "s"))
    tokenizer = load_tokenizer("bytes")
    seen = [
        {i for i in range(40) if f" number {i} " in tokenizer.decode(tokens_of(federation, "a", split).ravel())}
        for split in ("train", "valid")
    ]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(40))


def test_wide_vocabulary_needs_uint32(
    tmp_path: Path,
    make_federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    library_texts: Callable[..., list[str]],
    write_jsonl: Callable[..., Path],
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", library_texts("queue"))
    federation = make_federation({"a": str(source)}, model={"vocab_size": 100_000})
    tokenizer = load_tokenizer("bytes")
    tokenizer.size = 70_000
    tokenizer.eot = 69_999
    monkeypatch.setattr("photon_core.data.prepare.load_tokenizer", lambda _: tokenizer)
    manifest = prepare_site(view_of(federation, "s"))
    (shard,) = read_index(view_of(federation, "s").split_dir("a", "train"))
    assert shard.dtype == "uint32"
    assert int(read_shard(shard)[1].max()) == 69_999
    assert check_shards(view_of(federation, "s"), manifest.tokenizer_sha256).failed == []


def test_half_surrogates_do_not_stop_it(
    tmp_path: Path, make_federation: Callable[..., Federation], write_jsonl: Callable[..., Path]
) -> None:
    source = tmp_path / "a.jsonl"
    write_jsonl(source, [f"text {i} \ud800 " * 30 for i in range(20)])
    assert "\\ud800" in source.read_text()
    prepare_site(view_of(make_federation({"a": str(source)}), "s"))


REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    (
        [None, "a", "b"],
        {},
        "column null_documents: observed 1, allowed at most 0 \\(first at .*a.jsonl:1; the text is null; take",
    ),
    ([7, "a", "b"], {}, "column wrong_type_documents: observed 1, allowed at most 0"),
    (
        ["a", " \n", "b"],
        {},
        "column empty_documents: observed 1, allowed at most 0 \\(first at .*a.jsonl:2; the text is empty",
    ),
    (["a" * 101, "b"], {"max_document_bytes": 100}, "longest_document_bytes: observed 101, allowed at most 100"),
    (["a", "b", "b", "b"], {"max_duplicate_share": 0.3}, "duplicate_share: observed 0.5, allowed at most 0.3"),
    (["a"], {}, "column documents: observed 1, allowed at least 2"),
    (
        [],
        {},
        "column documents: observed 0, allowed at least 2 \\(each of the two splits needs a document; add texts",
    ),
]


@pytest.mark.parametrize(("texts", "data", "message"), REFUSED)
def test_texts_that_are_refused(
    tmp_path: Path,
    make_federation: Callable[..., Federation],
    texts: list[Any],
    data: dict[str, Any],
    message: str,
    write_jsonl: Callable[..., Path],
) -> None:
    federation = make_federation({"a": str(write_jsonl(tmp_path / "a.jsonl", texts))}, data=data)
    with pytest.raises(ExpectationFailed, match=f"site 's', stream 'a': .*{message}"):
        prepare_site(view_of(federation, "s"))
    assert load_manifest(view_of(federation, "s")) is None
    assert not (view_of(federation, "s").data_dir / "a").exists()


def test_two_equal_documents_cannot_be_split(
    tmp_path: Path, make_federation: Callable[..., Federation], write_jsonl: Callable[..., Path]
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["same " * 99] * 2)
    federation = make_federation({"a": str(source)}, data={"max_duplicate_share": 1})
    with pytest.raises(DataError, match="needs two distinct documents"):
        prepare_site(view_of(federation, "s"))


def test_too_little_text_for_a_sequence(
    tmp_path: Path, make_federation: Callable[..., Federation], write_jsonl: Callable[..., Path]
) -> None:
    federation = make_federation({"a": str(write_jsonl(tmp_path / "a.jsonl", ["short", "texts"]))})
    with pytest.raises(DataError, match="split has 1 documents and 6 tokens, less than one sequence"):
        prepare_site(view_of(federation, "s"))


def test_vocabulary_that_is_too_small(two_streams: Federation) -> None:
    small = two_streams.model_copy(update={"model": two_streams.model.model_copy(update={"vocab_size": 256})})
    with pytest.raises(FederationError, match=r"vocab_size is 256, but tokenizer 'bytes' has ids up to 256"):
        prepare_site(view_of(small, "s"))


def test_a_stream_that_leaves_the_file_leaves_the_disk(
    two_streams: Federation, make_federation: Callable[..., Federation]
) -> None:
    prepare_site(view_of(two_streams, "s"))
    prepare_site(view_of(make_federation({"one": two_streams.sites[0].streams[0].source}), "s"))
    assert not (view_of(two_streams, "s").data_dir / "two").exists()


def test_unigram_perplexity_by_hand() -> None:
    train, valid = np.array([3, 1, 0]), np.array([1, 0, 1])
    assert unigram_perplexity(train, valid) == pytest.approx(((4 / 7) * (1 / 7)) ** -0.5)


def test_raw_text_is_nowhere_but_in_the_shards(
    two_streams: Federation, library_texts: Callable[..., list[str]]
) -> None:
    prepare_site(view_of(two_streams, "s"))
    text = library_texts("queue")[0].encode()
    for path in view_of(two_streams, "s").data_dir.parent.rglob("*"):
        assert not path.is_file() or text not in path.read_bytes()
    assert json.loads((view_of(two_streams, "s").data_dir / "data.json").read_text())["site"] == "s"
