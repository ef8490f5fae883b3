"""The features that the checks look at: numbers from all documents of a stream or all shards of a site."""

import hashlib
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from photon_core.data.documents import Document
from photon_core.data.expectations import Features
from photon_core.data.mds import read_index, read_shard
from schemas.manifests import DataManifest
from schemas.view import SiteView


def text_bytes(document: Document) -> bytes | None:
    """A document's text as UTF-8, or None if it has none. Lone surrogates, which JSON can hold, become '?'."""
    return document.text.encode(errors="replace") if isinstance(document.text, str) else None


def text_hash(data: bytes, seed: int) -> int:
    """64 bits of a text's hash, keyed by the seed. It decides the document's split and finds duplicates."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


@dataclass
class DocumentFeatures:
    """Counts over a stream's raw documents. Memory: 8 bytes a document.

    Attributes:
        seed: key of the hashes.
        first: column -> place of the first (or largest) offender, as 'file:line'.
    """

    seed: int
    documents: int = 0
    null: int = 0
    wrong_type: int = 0
    empty: int = 0
    longest: int = 0
    first: dict[str, str] = field(default_factory=dict)
    _hashes: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, document: Document) -> None:
        """Count one document."""
        self.documents += 1
        data = text_bytes(document)
        if data is None:
            column = "null_documents" if document.text is None else "wrong_type_documents"
            self.null += document.text is None
            self.wrong_type += document.text is not None
            self._note(column, document)
            return
        if not data.strip():
            self.empty += 1
            self._note("empty_documents", document)
            return
        if len(data) > self.longest:
            self.longest = len(data)
            self.first["longest_document_bytes"] = f"{document.file}:{document.line}"
        self._hashes.append(text_hash(data, self.seed))

    def _note(self, column: str, document: Document) -> None:
        self.first.setdefault(column, f"first at {document.file}:{document.line}")

    def distinct(self) -> NDArray[np.uint64]:
        """The hashes of the distinct texts, sorted."""
        return np.unique(np.frombuffer(self._hashes, np.uint64)) if self._hashes else np.empty(0, np.uint64)

    def row(self) -> Features:
        """The row for the documents suite."""
        texts = len(self._hashes)
        return {
            "documents": self.documents,
            "null_documents": self.null,
            "wrong_type_documents": self.wrong_type,
            "empty_documents": self.empty,
            "longest_document_bytes": self.longest,
            "duplicate_share": round(1 - len(self.distinct()) / texts, 6) if texts else 0.0,
        }


def shard_features(view: SiteView, manifest: DataManifest, eot: int) -> Features:
    """The row for the shards suite, from every token of every stream and split, with one shard in memory.

    Args:
        view: site of the shards.
        manifest: data manifest of the site, whose files are verified.
        eot: id of the end-of-text token.

    Raises:
        DataError: a shard cannot be read.
    """
    tokens = {"train": 0, "valid": 0}
    lowest, highest, shortest, longest, ends = 2**32, 0, 2**32, 0, 0
    for stream in manifest.streams:
        for split in tokens:
            for shard in read_index(view.split_dir(stream, split)):
                ids = read_shard(shard)[1]
                tokens[split] += ids.size
                lowest = min(lowest, int(ids.min()))
                highest = max(highest, int(ids.max()))
                shortest = min(shortest, ids.shape[1])
                longest = max(longest, ids.shape[1])
                ends += int(np.count_nonzero(ids == eot))
    return {
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "lowest_token": lowest,
        "highest_token": highest,
        "shortest_sequence": shortest,
        "longest_sequence": longest,
        "eot_share": round(ends / max(1, sum(tokens.values())), 6),
        "train_tokens": tokens["train"],
        "valid_tokens": tokens["valid"],
    }
