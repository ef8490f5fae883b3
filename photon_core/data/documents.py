"""Raw documents of a stream, one at a time: .jsonl, .txt and .parquet, also compressed, from any fsspec URL."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from photon_core.data.sources import SourceFile, filesystem_open, hash_file, open_file
from photon_core.errors import DataError
from photon_core.store.retry import connection_errors
from schemas.server_errors import told

MAX_RECORD = 1 << 30  # bytes of one document


@dataclass(frozen=True)
class Document:
    """One document as its file holds it.

    Attributes:
        text: text of the document; None or another type where the file holds no text, which the checks count.
        file: path or URL of the file.
        line: line or row in the file, from 1.
    """

    text: Any
    file: str
    line: int


def read_file(file: SourceFile, text_key: str, digest: Any = None) -> Iterator[Document]:
    """The documents of one file.

    Args:
        file: source file, from `list_files`.
        text_key: key (.jsonl) or column (.parquet) that holds the text. A .txt file is one document.
        digest: hashlib object that is updated with all raw bytes of the file.

    Raises:
        DataError: the file is missing, unreadable, truncated, not JSON, or lacks the key; the message names file
            and line. A null, an empty text or a number under the key is not an error: the checks count those.
    """
    if file.kind == ".parquet":
        if digest is not None:
            hash_file(file, digest)
        yield from _read_parquet(file, text_key)
        return
    with open_file(file, digest) as content:
        if file.kind == ".txt":
            yield _read_text(file, content)
        else:
            yield from _read_lines(file, text_key, content)


def _read_text(file: SourceFile, content: BinaryIO) -> Document:
    data = _read(file, 1, content, whole=True)
    return Document(_decode(file, 1, data), file.name, 1)


def _read_lines(file: SourceFile, text_key: str, content: BinaryIO) -> Iterator[Document]:
    line = 0
    while data := _read(file, line + 1, content, whole=False):
        line += 1
        text = _decode(file, line, data)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file.name}:{line}: not JSON ({error}); write one JSON object a line") from error
        except RecursionError:
            raise DataError(f"{file.name}:{line}: JSON nested too deeply") from None
        if not isinstance(record, dict):
            raise DataError(f"{file.name}:{line}: is {_name(record)}; write one JSON object a line")
        if text_key not in record:
            raise DataError(
                f"{file.name}:{line}: no key '{text_key}'; the keys are "
                f"{', '.join(map(repr, record)) or 'none'} (set the stream's text_key)"
            )
        yield Document(record[text_key], file.name, line)


def _read(file: SourceFile, line: int, content: BinaryIO, whole: bool) -> bytes:
    import zstandard

    try:
        data = content.read(MAX_RECORD + 1) if whole else content.readline(MAX_RECORD + 1)
    except connection_errors(OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{file.name}:{line}: unreadable or truncated ({told(error)})") from None
    if len(data) > MAX_RECORD:
        raise DataError(f"{file.name}:{line}: a document of more than {MAX_RECORD} bytes; split it")
    return data


def _decode(file: SourceFile, line: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}:{line}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}); convert the file"
        ) from error


def _read_parquet(file: SourceFile, text_key: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with filesystem_open(file) as raw:
            table = pyarrow.parquet.ParquetFile(raw)
            names = table.schema_arrow.names
            if text_key not in names:
                raise DataError(
                    f"{file.name}: no column '{text_key}'; the columns are {', '.join(map(repr, names))} "
                    "(set the stream's text_key)"
                )
            for batch in table.iter_batches(batch_size=256, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield Document(value, file.name, row)
    except connection_errors(pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.name}:{row + 1}: unreadable parquet ({told(error)})") from None


def _name(value: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")
