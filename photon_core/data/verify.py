"""Verification of a site's shards against its data manifest."""

import json
from pathlib import Path

from photon_core.data.mds import read_index
from photon_core.errors import CorruptFile
from photon_core.files import write_whole
from photon_core.hashing import canonical_json, sha256_file
from schemas.manifests import DataManifest, FileEntry
from schemas.view import SiteView

Seen = dict[str, list[int | str]]  # path -> size, modification time in ns, sha256


def verify_files(view: SiteView, manifest: DataManifest) -> list[str]:
    """Compare every file of data.json by size and hash, and remove damaged unpacked copies.

    A file that was verified before, with the same size and modification time, is not read again.

    Args:
        view: site of the data.
        manifest: data manifest of the site.

    Returns:
        Notes on removed unpacked copies (streaming unpacks them again).

    Raises:
        CorruptFile: a file is missing, truncated or corrupt; the message names the file and the remedy.
    """
    root = view.data_dir
    cache = VerifiedFiles(view.cache_dir / "verified.json")
    for name, stream in manifest.streams.items():
        check_entries(root, stream.files, cache, view.name, name)
    notes = []
    for name in manifest.streams:
        for split in ("train", "valid"):
            notes += _check_unpacked(root / name / split, cache)
    cache.save()
    return notes


def check_entries(root: Path, files: list[FileEntry], cache: "VerifiedFiles", site: str, stream: str) -> None:
    """Compare files below `root` with their entries.

    Raises:
        CorruptFile: a file differs; the message names the first.
    """
    remedy = f"(site '{site}', stream '{stream}'); run photon prepare --site {site} to regenerate it"
    for entry in files:
        path = root / entry.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise CorruptFile(f"data.json of site '{site}' names '{entry.path}', outside its own folder")
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise CorruptFile(f"{path}: missing {remedy}") from None
        if size != entry.bytes:
            raise CorruptFile(f"{path}: {size} bytes, {entry.bytes} expected: truncated or changed {remedy}")
        if not cache.matches(path, entry.sha256):
            raise CorruptFile(f"{path}: corrupt, its sha256 is not the one in data.json {remedy}")


def _check_unpacked(folder: Path, cache: "VerifiedFiles") -> list[str]:
    notes = []
    for shard in read_index(folder):
        path = shard.raw_path
        if path.exists() and (path.stat().st_size != shard.raw_bytes or not cache.matches(path, shard.raw_sha256)):
            path.unlink()
            notes.append(f"{path}: the unpacked copy was damaged and is removed; training unpacks it again")
    return notes


class VerifiedFiles:
    """Cache of file hashes by size and modification time, in a small JSON file."""

    def __init__(self, path: Path) -> None:
        """Read the cache; a missing or damaged one is empty.

        Args:
            path: path of the JSON file.
        """
        self._path = path
        self._changed = False
        try:
            self._seen: Seen = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            self._seen = {}

    def matches(self, path: Path, sha256: str) -> bool:
        """Whether the file has that hash. The file is read only if it has changed since it was last read."""
        stat = path.stat()
        key = str(path.absolute())
        seen = self._seen.get(key)
        if seen is None or seen[:2] != [stat.st_size, stat.st_mtime_ns]:
            seen = [stat.st_size, stat.st_mtime_ns, sha256_file(path)]
            self._seen[key] = seen
            self._changed = True
        return seen[2] == sha256

    def save(self) -> None:
        """Write the cache for the next process."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, canonical_json(self._seen))
            self._changed = False
