"""Second pass over a stream: tokenise in batches, pack to fixed sequences, write MDS shards of both splits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.data.documents import read_file
from photon_core.data.features import DocumentFeatures, text_bytes, text_hash
from photon_core.data.sources import SourceFile
from photon_core.data.tokenizer import Tokenizer
from photon_core.errors import DataError
from schemas.federation import Federation

BATCH_DOCUMENTS = 256
BATCH_BYTES = 4 << 20
SHARD_BYTES = 1 << 26


class Split:
    """One split being written: documents are joined, each ended by end-of-text, and cut to sequences.

    Attributes:
        documents: written so far.
        sequences: written so far; also the next sequence's id.
    """

    def __init__(self, folder: Path, sequence_length: int, dtype: str, eot: int) -> None:
        """Start the shards of a split.

        Args:
            folder: new folder of the split.
            sequence_length: tokens a sequence, T.
            dtype: of the tokens in the shards, 'uint16' or 'uint32'.
            eot: id of the end-of-text token.
        """
        from streaming import MDSWriter

        self.documents = 0
        self.sequences = 0
        self._length = sequence_length
        self._end = np.array([eot], np.uint32)
        self._dtype = dtype
        self._waiting: list[NDArray[np.uint32]] = []
        self._tokens = 0
        self._writer: Any = MDSWriter(
            out=str(folder),
            columns={"id": "uint32", "tokens": f"ndarray:{dtype}:{sequence_length}"},
            compression="zstd",
            hashes=["sha256"],
            size_limit=SHARD_BYTES,
        )

    @property
    def dropped_tokens(self) -> int:
        """Tokens after the last whole sequence; they are in no shard."""
        return self._tokens

    def add(self, ids: NDArray[np.uint32]) -> None:
        """Append one document's ids, shape (n,)."""
        self.documents += 1
        self._waiting += [ids, self._end]
        self._tokens += len(ids) + 1

    def flush(self) -> None:
        """Write every sequence that is full."""
        if self._tokens < self._length:
            return
        joined = np.concatenate(self._waiting)
        whole = len(joined) // self._length * self._length
        for row in joined[:whole].astype(self._dtype).reshape(-1, self._length):
            self._writer.write({"id": self.sequences, "tokens": row})
            self.sequences += 1
        self._waiting = [joined[whole:]]
        self._tokens = len(joined) - whole

    def finish(self) -> None:
        """Write what is full, the last shard and the index."""
        self.flush()
        self._writer.finish()


def pack_stream(
    files: list[SourceFile],
    text_key: str,
    tokenizer: Tokenizer,
    folder: Path,
    features: DocumentFeatures,
    federation: Federation,
    progress: Callable[[int], None],
) -> dict[str, Split]:
    """Write the train and valid splits of a stream below `folder`, which does not exist yet.

    A document's split follows from the hash of its text and the seed, so exact duplicates share a split and the
    order of documents does not matter. At least one distinct text is in each split.

    Args:
        files: the raw files, already looked through once.
        text_key: key or column of the text.
        tokenizer: of the federation.
        folder: where.
        features: of the same documents, from the first pass.
        federation: the file, for the tokens a sequence and the share of documents held out.
        progress: called with the number of documents done.

    Returns:
        'train' and 'valid', finished.

    Raises:
        DataError: a file is unreadable, or fewer than two distinct texts are there.
    """
    bound = split_bound(features.distinct(), federation.data.validation_share, files[0].name)
    dtype = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
    length = federation.model.max_seq_len
    splits = {name: Split(folder / name, length, dtype, tokenizer.eot) for name in ("train", "valid")}
    done = 0
    for texts in _batches(files, text_key):
        ids = tokenizer.encode_batch([data.decode() for data in texts])
        for data, document in zip(texts, ids, strict=True):
            held_out = text_hash(data, features.seed) < bound
            splits["valid" if held_out else "train"].add(document)
        for split in splits.values():
            split.flush()
        done += len(texts)
        progress(done)
    for split in splits.values():
        split.finish()
    return splits


def split_bound(distinct: NDArray[np.uint64], share: float, where: str) -> int:
    """The hash below which a document is held out.

    Args:
        distinct: hashes of the distinct texts, sorted, shape (n,).
        share: of documents to hold out.
        where: what errors call the stream.

    Raises:
        DataError: there are fewer than two distinct texts, so that no split is possible.
    """
    if len(distinct) < 2:
        raise DataError(f"{where}: a stream needs two distinct documents, one to train and one to hold out")
    bound = int(share * 2.0**64)
    held_out = int(np.searchsorted(distinct, np.uint64(min(bound, 2**64 - 1))))
    if held_out == 0:
        return int(distinct[1])
    if held_out == len(distinct):
        return int(distinct[-1])
    return bound


def _batches(files: list[SourceFile], text_key: str) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for file in files:
        for document in read_file(file, text_key):
            data = text_bytes(document)
            if data is None or not data.strip():
                continue  # only if the suite was changed to allow them: there is nothing to learn from
            batch.append(data)
            size += len(data)
            if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
