"""Second pass over a stream: tokenise in batches, pack into fixed-length sequences, write MDS shards."""

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
    """Writer of one split: documents are joined, each followed by end-of-text, and cut into sequences.

    Attributes:
        documents: number of documents so far.
        sequences: number of sequences so far, and the next sequence's id.
    """

    def __init__(self, folder: Path, sequence_length: int, dtype: str, eot: int) -> None:
        """Start the shards of a split.

        Args:
            folder: new folder of the split.
            sequence_length: number of tokens a sequence, T.
            dtype: token dtype in the shards, 'uint16' or 'uint32'.
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
        """Number of tokens after the last full sequence; they are in no shard."""
        return self._tokens

    def add(self, ids: NDArray[np.uint32]) -> None:
        """Append one document's ids, shape (n,)."""
        self.documents += 1
        self._waiting += [ids, self._end]
        self._tokens += len(ids) + 1

    def flush(self) -> None:
        """Write all full sequences."""
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
        """Write all full sequences, the last shard and the index."""
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

    A document's split follows from the hash of its text and the seed. So exact duplicates share a split, and the
    order of documents does not matter. Each split has at least one distinct text.

    Args:
        files: raw files, which the first pass has read.
        text_key: key or column of the text.
        tokenizer: tokenizer of the federation.
        folder: output folder.
        features: features of the same documents, from the first pass.
        federation: federation file, for the sequence length and the held-out share.
        progress: callback with the number of documents done.

    Returns:
        The finished splits 'train' and 'valid'.

    Raises:
        DataError: a file is unreadable, or the stream has fewer than two distinct texts.
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
        share: held-out share of documents.
        where: label of the stream for errors.

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
                continue  # possible only if the suite was changed to allow it; there is nothing to learn
            batch.append(data)
            size += len(data)
            if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
