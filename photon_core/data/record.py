"""stream.json: the record of one finished stream, from which an interrupted preparation resumes."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from photon_core.data.mds import read_index
from photon_core.errors import DataError
from photon_core.hashing import sha256_file
from schemas.manifests import FileEntry, StreamData

NAME = "stream.json"


class StreamRecord(BaseModel):
    """One finished stream. It is written last into its folder, so the folder is whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings_sha256: str
    eot: int
    source_sha256: str
    train_documents: int
    valid_documents: int
    train_sequences: int
    valid_sequences: int
    dropped_tokens: dict[str, int]
    checks: list[dict[str, Any]]
    files: list[FileEntry]


def read_record(folder: Path) -> StreamRecord:
    """The record of a finished stream.

    Raises:
        DataError: the record is missing or damaged.
    """
    path = folder / NAME
    try:
        return StreamRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is damaged"
        raise DataError(f"{path}: {reason}; run photon prepare again") from error


def file_entries(folder: Path, stream: str, splits: tuple[str, ...] = ("train", "valid")) -> list[FileEntry]:
    """Entries of a stream's shards and indices, with the paths of data.json: <stream>/<split>/<file>."""
    entries = []
    for split in splits:
        shards = [shard.path for shard in read_index(folder / split)]
        for path in [*shards, folder / split / "index.json"]:
            entries.append(_entry(path, f"{stream}/{split}/{path.name}"))
    return entries


def stream_data(folder: Path, stream: str, record: StreamRecord, sequence_length: int) -> StreamData:
    """The stream's entry in data.json; its files are those of the record and the record itself."""
    return StreamData(
        documents=record.train_documents + record.valid_documents,
        tokens=(record.train_sequences + record.valid_sequences) * sequence_length,
        source_sha256=record.source_sha256,
        files=[*record.files, _entry(folder / NAME, f"{stream}/{NAME}")],
    )


def _entry(path: Path, name: str) -> FileEntry:
    return FileEntry(path=name, sha256=sha256_file(path), bytes=path.stat().st_size)
