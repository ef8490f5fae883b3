"""Preparation: text to validated, tokenised, packed MDS shards, at the site that owns the text."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.data import manifest as data_manifest
from photon_core.data.documents import read_file
from photon_core.data.features import DocumentFeatures
from photon_core.data.manifest import load_manifest
from photon_core.data.mds import read_index, read_shard
from photon_core.data.pack import Split, pack_stream
from photon_core.data.quality import check_documents
from photon_core.data.record import NAME, StreamRecord, file_entries, read_record, stream_data
from photon_core.data.replace import aside, check_free, claim, drop_aside, empty_stream, finish, replace
from photon_core.data.shards import check_owner, publish
from photon_core.data.sources import SourceFile, list_files
from photon_core.data.tokenizer import Tokenizer, load_tokenizer
from photon_core.data.verify import VerifiedFiles, check_entries, verify_files
from photon_core.errors import CorruptFile, DataError, FederationError
from photon_core.files import folder_lock, write_whole
from photon_core.hashing import canonical_json, sha256_bytes
from schemas.federation import Federation
from schemas.manifests import DataManifest
from schemas.sections.overlap import check_overlap
from schemas.sections.sites import Stream
from schemas.view import SiteView

__all__ = ["load_manifest", "prepare_site"]

FORMAT = 1  # of the shards and records below; with a new format every site prepares again
Progress = Callable[[str, int, int], None]


def prepare_site(view: SiteView, progress: Progress | None = None) -> DataManifest:
    """Prepare all streams of a site. Idempotent; an interrupted preparation resumes.

    New shards are built beside the old ones, which stay usable until all new shards are whole (see replace.py).

    Args:
        view: site to prepare; its sources are read and its private folder is written.
        progress: callback with (label, documents done, all documents or 0 if unknown).

    Returns:
        The manifest, as committed in data.json.

    Raises:
        FederationError: the tokenizer does not exist or does not fit the model's vocabulary, or paths of the file
            overlap or are another site's.
        DataError: a source is missing, unreadable or too small, or foreign files are in the way;
            ExpectationFailed for refused texts.
    """
    federation = view.federation
    tokenizer = load_tokenizer(federation.tokenizer)
    if tokenizer.size > federation.model.vocab_size:
        raise FederationError(
            f"model.vocab_size is {federation.model.vocab_size}, but tokenizer '{federation.tokenizer}' has ids "
            f"up to {tokenizer.size - 1}; write vocab_size: {tokenizer.size} or more"
        )
    check_overlap(federation, [view.name])
    check_owner(view)
    root = view.data_dir
    claim(root)
    with folder_lock(root):
        finish(root)
        plans = {stream.name: _settings(view, stream, tokenizer) for stream in view.streams}
        settings = sha256_bytes(canonical_json([view.name, plans]))
        done = _finished(view, settings)
        if done is not None:
            drop_aside(root)
            publish(view)
            return done
        check_free(root, plans)
        places = (root, aside(root))
        streams: dict[str, tuple[Path, StreamRecord]] = {}
        for stream in view.streams:
            finished = _kept(view, stream.name, plans[stream.name], places)
            if finished is None:
                record = _make(view, stream, tokenizer, plans[stream.name], progress or _no_progress)
                finished = (places[1], record)
            streams[stream.name] = finished
        manifest = _assemble(view, tokenizer, streams, settings)
        replace(root, manifest.model_dump_json(indent=1).encode() + b"\n")
        publish(view)
        return manifest


def _no_progress(what: str, done: int, total: int) -> None:
    pass


def _settings(view: SiteView, stream: Stream, tokenizer: Tokenizer) -> str:
    """Hash of everything that a stream's shards depend on."""
    if stream.name.lower() == data_manifest.NAME:
        raise FederationError(f"a stream cannot be named '{stream.name}'; write another name")
    from photon_core.data.expectations import load_suite

    federation = view.federation
    files = _files(view, stream)
    return sha256_bytes(
        canonical_json(
            {
                "format": FORMAT,
                "tokenizer": tokenizer.sha256,
                "sequence_length": federation.model.max_seq_len,
                "seed": federation.seed,
                "validation_share": federation.data.validation_share,
                "max_document_bytes": federation.data.max_document_bytes,
                "max_duplicate_share": federation.data.max_duplicate_share,
                "suite": load_suite("documents"),
                "text_key": stream.text_key,
                "files": [[file.name, *file.fingerprint] for file in files],
            }
        )
    )


def _files(view: SiteView, stream: Stream) -> list[SourceFile]:
    return list_files(stream.source, view.options(stream.source))


def _finished(view: SiteView, settings: str) -> DataManifest | None:
    try:
        manifest = load_manifest(view)
        if manifest is not None and manifest.settings_sha256 == settings:
            verify_files(view, manifest)
            return manifest
    except DataError:
        pass  # a damaged manifest is regenerated
    except CorruptFile:
        pass  # so is a damaged stream
    return None


def _kept(view: SiteView, stream: str, settings: str, places: Iterable[Path]) -> tuple[Path, StreamRecord] | None:
    """The first place where the stream is finished, undamaged and of these settings, and its record; or None."""
    cache = VerifiedFiles(view.cache_dir / "verified.json")
    for place in places:
        try:
            record = read_record(place / stream)
            check_entries(place, record.files, cache, view.name, stream)
        except (DataError, CorruptFile):
            continue
        if record.settings_sha256 == settings:
            return place, record
    return None


def _make(view: SiteView, stream: Stream, tokenizer: Tokenizer, settings: str, progress: Progress) -> StreamRecord:
    folder = empty_stream(view.data_dir, stream.name)
    files = _files(view, stream)
    features, source_sha256 = _look(view.federation, stream, files, progress)
    checks = check_documents(view, stream.name, features)
    splits = pack_stream(
        files,
        stream.text_key,
        tokenizer,
        folder,
        features,
        view.federation,
        lambda done: progress(f"{stream.name}: tokenising", done, features.documents),
    )
    _refuse_empty(view.name, stream, splits)
    if [f.fingerprint for f in _files(view, stream)] != [f.fingerprint for f in files]:
        raise DataError(f"{stream.source}: changed while it was read; run photon prepare --site {view.name} again")
    record = StreamRecord(
        settings_sha256=settings,
        eot=tokenizer.eot,
        source_sha256=source_sha256,
        train_documents=splits["train"].documents,
        valid_documents=splits["valid"].documents,
        train_sequences=splits["train"].sequences,
        valid_sequences=splits["valid"].sequences,
        dropped_tokens={name: split.dropped_tokens for name, split in splits.items()},
        checks=[asdict(check) for check in checks.checks],
        files=file_entries(folder, stream.name),
    )
    write_whole(folder / NAME, record.model_dump_json(indent=1).encode())
    return record


def _look(
    federation: Federation, stream: Stream, files: list[SourceFile], progress: Progress
) -> tuple[DocumentFeatures, str]:
    """First pass over the raw documents: features for the checks and the split, hash of the raw bytes."""
    features = DocumentFeatures(federation.seed)
    digest = hashlib.sha256()
    for file in files:
        for document in read_file(file, stream.text_key, digest):
            features.add(document)
            if features.documents % 256 == 0:
                progress(f"{stream.name}: checking", features.documents, 0)
    progress(f"{stream.name}: checking", features.documents, features.documents)
    return features, digest.hexdigest()


def _refuse_empty(site: str, stream: Stream, splits: dict[str, Split]) -> None:
    for name, split in splits.items():
        if split.sequences == 0:
            raise DataError(
                f"site '{site}', stream '{stream.name}': the {name} split has {split.documents} documents and "
                f"{split.dropped_tokens} tokens, less than one sequence; give the stream more text, or write a "
                "shorter model.max_seq_len or another data.validation_share"
            )


def _assemble(
    view: SiteView,
    tokenizer: Tokenizer,
    streams: dict[str, tuple[Path, StreamRecord]],
    settings: str,
) -> DataManifest:
    length, records = view.federation.model.max_seq_len, {name: record for name, (_, record) in streams.items()}
    folders = [place / name for name, (place, _) in streams.items()]
    train_sequences = sum(record.train_sequences for record in records.values())
    valid_sequences = sum(record.valid_sequences for record in records.values())
    return DataManifest(
        site=view.name,
        tokenizer_sha256=tokenizer.sha256,
        sequence_length=length,
        vocab_size=tokenizer.size,
        train_documents=sum(record.train_documents for record in records.values()),
        valid_documents=sum(record.valid_documents for record in records.values()),
        train_sequences=train_sequences,
        valid_sequences=valid_sequences,
        train_tokens=train_sequences * length,
        valid_tokens=valid_sequences * length,
        unigram_perplexity=_unigram_perplexity(folders, tokenizer.size),
        streams={
            name: stream_data(place / name, name, record, length) for name, (place, record) in streams.items()
        },
        checks={
            name: {"documents": record.checks, "dropped_tokens": record.dropped_tokens}
            for name, record in records.items()
        },
        settings_sha256=settings,
        versions=_versions(),
    )


def _unigram_perplexity(streams: list[Path], size: int) -> float:
    counts = {split: np.zeros(size, np.int64) for split in ("train", "valid")}
    for split, count in counts.items():
        for stream in streams:
            for shard in read_index(stream / split):
                count += np.bincount(read_shard(shard)[1].ravel(), minlength=size)
    return unigram_perplexity(counts["train"], counts["valid"])


def unigram_perplexity(train: Any, valid: Any) -> float:
    """Perplexity on `valid` of the add-one smoothed unigram model of `train`; both are counts, shape (size,)."""
    log_p = np.log(train + 1) - np.log(train.sum() + len(train))
    return float(np.exp(-(valid * log_p).sum() / valid.sum()))


def _versions() -> dict[str, str]:
    names = ("photon-prefect", "mosaicml-streaming", "tokenizers", "great-expectations", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
