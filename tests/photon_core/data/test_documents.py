"""Raw documents: every kind, packed and not, local and remote, and a table of bad files."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import zstandard

from photon_core.data.documents import Document, read_file
from photon_core.data.sources import list_files
from photon_core.errors import DataError

TEXTS = ["first", "second — ünïcode", "third\nwith lines"]


def read_documents(source: str, text_key: str) -> Iterator[Document]:
    """The documents of all files, in the order of their names."""
    for file in list_files(source):
        yield from read_file(file, text_key)


def lines(texts: list[object]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(path: Path, texts: list[object], key: str = "text") -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({key: texts, "other": list(range(len(texts)))}), path)


def pack(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if name.endswith(".zst") else content


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(path.name, lines(list(TEXTS)) + b"\n"))
    documents = list(read_documents(str(path), "text"))
    assert [d.text for d in documents] == TEXTS
    assert [(d.file, d.line) for d in documents] == [(str(path), i) for i in (1, 2, 3)]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_txt_is_one_document_a_file(tmp_path: Path, ending: str) -> None:
    for i, text in enumerate(TEXTS):
        path = tmp_path / f"{i}.txt{ending}"
        path.write_bytes(pack(path.name, text.encode()))
    assert [d.text for d in read_documents(str(tmp_path / "*.txt*"), "text")] == TEXTS


def test_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [*TEXTS, None])
    documents = list(read_documents(str(tmp_path / "a.parquet"), "text"))
    assert [d.text for d in documents] == [*TEXTS, None]
    assert documents[3].line == 4


def test_folder_takes_the_endings_that_we_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("b")
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    assert [d.text for d in read_documents(str(tmp_path), "text")] == ["a", "b"]


def test_remote_filesystem() -> None:
    with fsspec.open("memory://documents/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(lines(list(TEXTS))))
    documents = list(read_documents("memory://documents/*.gz", "text"))
    assert [d.text for d in documents] == TEXTS
    assert documents[0].file == "memory:///documents/a.jsonl.gz"


def test_several_frames_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["a"])) + gzip.compress(lines(["b"])))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines(["c"])) + zstandard.compress(lines(["d"])))
    assert [d.text for d in read_documents(str(tmp_path), "text")] == ["a", "b", "c", "d"]


def test_bom_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(["more"]))
    assert [d.text for d in read_documents(str(tmp_path), "text")] == ["text", "more"]


def test_what_is_no_text_is_a_row_for_the_checks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([None, "", 3, ["list"], "text"]))
    found = [d.text for d in read_documents(str(tmp_path / "a.jsonl"), "text")]
    assert found == [None, "", 3, ["list"], "text"]


def test_digest_is_of_the_raw_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(list(TEXTS))))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines(["x"])))
    (tmp_path / "c.txt").write_text("plain")
    parquet(tmp_path / "d.parquet", ["p"])
    for file in list_files(str(tmp_path)):
        digest = hashlib.sha256()
        assert list(read_file(file, "text", digest))
        assert digest.hexdigest() == hashlib.sha256(Path(file.name).read_bytes()).hexdigest(), file.name


GOOD = lines(["good"])
ZIPPED = gzip.compress(GOOD, mtime=0)  # the same bytes in every process that collects these tests
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.jsonl", GOOD + b"{no json\n", r"a\.jsonl:2: not JSON"),
    ("a.jsonl", GOOD + b'{"text": "cut', r"a\.jsonl:2: not JSON"),
    ("a.jsonl", GOOD + b'"text"\n', r"a\.jsonl:2: is a text; write one JSON object a line"),
    ("a.jsonl", b"[1]\n", r"a\.jsonl:1: is a list; write one JSON object a line"),
    ("a.jsonl", b"null\n", r"a\.jsonl:1: is null; write one JSON object a line"),
    ("a.jsonl", b"7\n", r"a\.jsonl:1: is a number; write one JSON object a line"),
    ("a.jsonl", b"true\n", r"a\.jsonl:1: is a truth value; write one JSON object a line"),
    ("a.jsonl", GOOD + b'{"body": "x"}\n', r"a\.jsonl:2: no key 'text'; the keys are 'body' \(set the stream"),
    ("a.jsonl", b"{}\n", r"a\.jsonl:1: no key 'text'; the keys are none"),
    ("a.jsonl", GOOD + b'{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 \(byte 10 is 0xff\)"),
    ("a.jsonl", b"[" * 200_000 + b"\n", r"a\.jsonl:1: JSON nested too deeply"),
    ("a.txt", b"latin \xe9", r"a\.txt:1: not UTF-8 \(byte 6 is 0xe9\); convert the file"),
    ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], r"a\.txt\.gz:1: unreadable or truncated"),
    ("a.jsonl.gz", gzip.compress(GOOD * 999, mtime=0)[:40], r"a\.jsonl\.gz:\d+: unreadable or truncated"),
    ("a.jsonl.gz", b"plain text", r"a\.jsonl\.gz:1: unreadable or truncated \(Not a gzipped file"),
    ("a.jsonl.gz", ZIPPED[:-8] + b"\0" * 8, r"a\.jsonl\.gz:\d+: unreadable or truncated \(CRC"),
    ("a.jsonl.zst", zstandard.compress(GOOD * 999)[:-5], r"a\.jsonl\.zst:\d+: unreadable or truncated"),
    ("a.jsonl.zst", b"plain text", r"a\.jsonl\.zst:1: unreadable or truncated"),
    ("a.parquet", b"PAR1 not really", r"a\.parquet:1: unreadable parquet"),
    ("a.parquet", b"", r"a\.parquet:1: unreadable parquet"),
    ("a.csv", b"text\nx\n", r"a\.csv: unknown file ending; Photon reads \.jsonl \.txt \.parquet"),
    ("a.parquet.gz", b"", r"a\.parquet\.gz: unknown file ending"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(str(tmp_path / name), "text"))


def test_missing_parquet_column_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["x"], key="body")
    with pytest.raises(DataError, match=r"no column 'text'; the columns are 'body', 'other' \(set the stream"):
        list(read_documents(str(tmp_path / "a.parquet"), "text"))


def test_corrupt_parquet_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, [f"text {i} " * 50 for i in range(2000)])
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet:\d+: unreadable parquet"):
        list(read_documents(str(path), "text"))


@pytest.mark.parametrize("source", ["gone.jsonl", "*.jsonl", "memory://nowhere/*.txt", "."])
def test_no_file_is_an_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="no file found; write a path, glob or URL"):
        list_files(source if "://" in source else str(tmp_path / source))


def test_unknown_filesystem_is_an_error() -> None:
    with pytest.raises(DataError, match=r"nosuch://x/a\.txt: cannot be listed"):
        list_files("nosuch://x/a.txt")


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (before,) = list_files(str(path))
    assert list_files(str(path))[0].fingerprint == before.fingerprint
    path.write_text("three")
    assert list_files(str(path))[0].fingerprint != before.fingerprint
