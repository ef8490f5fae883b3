"""The memory of verified files."""

import os
from pathlib import Path

import pytest

from photon_core.data.verify import VerifiedFiles, check_entries
from photon_core.errors import CorruptFile
from photon_core.hashing import sha256_bytes
from schemas.manifests import FileEntry


def test_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    cache = VerifiedFiles(tmp_path / "cache" / "verified.json")
    assert cache.matches(path, sha256_bytes(b"one"))
    cache.save()
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # same size and time: taken for the same file, which is what the cache is for
    assert VerifiedFiles(tmp_path / "cache" / "verified.json").matches(path, sha256_bytes(b"one"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not VerifiedFiles(tmp_path / "cache" / "verified.json").matches(path, sha256_bytes(b"one"))
    assert VerifiedFiles(tmp_path / "cache" / "verified.json").matches(path, sha256_bytes(b"two"))


@pytest.mark.parametrize("path", ["../a", "/etc/hostname", "x/../../a"])
def test_entries_stay_below_their_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "data").mkdir()
    entry = FileEntry(path=path, sha256=sha256_bytes(b"one"), bytes=3)
    with pytest.raises(CorruptFile, match="outside its own folder"):
        check_entries(tmp_path / "data", [entry], VerifiedFiles(tmp_path / "v"), "s", "a")


def test_missing_file_is_named(tmp_path: Path) -> None:
    entry = FileEntry(path="a/b", sha256="0" * 64, bytes=3)
    with pytest.raises(CorruptFile, match=r"a/b: missing \(site 's', stream 'a'\); run photon prepare --site s"):
        check_entries(tmp_path, [entry], VerifiedFiles(tmp_path / "v"), "s", "a")
