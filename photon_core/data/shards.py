"""A site's prepared shards in a place that its machines share (`sites[].shards`) and copy them from.

    <shards>/0001-1a2b3c4d5e6f7a8b/<stream>/{train,valid}/...   shards of `photon prepare`, named by their manifest
    <shards>/0001-1a2b3c4d5e6f7a8b/data.json                    written last

The newest folder with a data.json counts. Nothing is overwritten: text that is prepared again gets a new folder.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from photon_core.data.manifest import NAME, data_manifest, load_manifest
from photon_core.data.replace import NEXT, aside, check_listed, claim, finish, is_cut_off, replace
from photon_core.data.verify import VerifiedFiles
from photon_core.errors import CorruptFile, DataError
from photon_core.files import folder_lock, whole_file
from photon_core.hashing import sha256_bytes
from photon_core.store.store import Store, StoreConflict, check_path
from schemas.manifests import DataManifest, FileEntry
from schemas.view import SiteView

FOLDER = re.compile(r"(\d{4,})-([0-9a-f]{16})")
MANIFEST_LIMIT = 256 << 20  # bytes; 200 for each shard of 64 MB


def available(view: SiteView) -> DataManifest | None:
    """The manifest of the site's prepared data, in its place for shards or on this machine; None without data.

    Raises:
        DataError: the manifest is damaged.
        StoreUnavailable, StoreRefused: the place for shards cannot be read.
    """
    place = _place(view)
    newest = _newest(place) if place is not None else None
    if place is None or newest is None:
        return load_manifest(view)
    folder, content = newest
    return data_manifest(content, place.locate(f"{folder}/{NAME}"), view.name)


def check_owner(view: SiteView) -> None:
    """Refuse, before any work, a place for shards or a state_dir with another site's data.

    Raises:
        FederationError: it holds another site's data.
        StoreUnavailable, StoreRefused: the place for shards cannot be read.
    """
    with suppress(DataError):  # damaged data are regenerated
        available(view)
        load_manifest(view)


def publish(view: SiteView) -> None:
    """Upload the site's prepared shards to its place for shards, if the file names one and it lacks them.

    Raises:
        StoreUnavailable, StoreRefused: the shards cannot be written.
    """
    place = _place(view)
    if place is None:
        return
    root = view.data_dir
    content = (root / NAME).read_bytes()
    newest = _newest(place)
    if newest is not None and newest[1] == content:
        return
    # after an interrupted upload this is the same folder again
    number = int(newest[0].partition("-")[0]) + 1 if newest is not None else 1
    folder = f"{number:04d}-{sha256_bytes(content)[:16]}"
    for entry in _entries(data_manifest(content, str(root / NAME), view.name)):
        path = f"{folder}/{entry.path}"
        if not place.exists(path):
            place.put(root / entry.path, path)
    try:
        place.create(f"{folder}/{NAME}", content)
    except StoreConflict:
        pass  # another machine of the site has uploaded the same


def stage(view: SiteView) -> None:
    """Copy the newest shards from the site's place for shards to its state_dir, and verify every file by its hash.

    Does nothing if the file names no such place, or if it is empty. Damaged local files are copied again. The old
    local shards stay usable until all are copied, and an interrupted replacement is completed (see replace.py).

    Raises:
        CorruptFile: a file is missing in the place, or is not the one that the manifest covers.
        DataError: the manifest in the place is damaged.
        StoreUnavailable, StoreRefused: the place cannot be read.
    """
    root = view.data_dir
    if is_cut_off(root):
        with folder_lock(root):
            finish(root)
    place = _place(view)
    newest = _newest(place) if place is not None else None
    if place is None or newest is None:
        return
    folder, content = newest
    manifest = data_manifest(content, place.locate(f"{folder}/{NAME}"), view.name)
    for entry in _entries(manifest):
        check_path(entry.path)
    check_listed(manifest, place.locate(folder))
    claim(root)
    with folder_lock(root):
        finish(root)
        cache = VerifiedFiles(view.cache_dir / "verified.json")
        missing = [entry for entry in _entries(manifest) if not _is_here(root / entry.path, entry, cache)]
        committed = root / NAME
        if missing or not committed.exists() or committed.read_bytes() != content:
            for entry in missing:
                if not _is_here(aside(root) / entry.path, entry, cache):
                    _copy(place, folder, entry, root / NEXT, view.cache_dir / "shards")
            aside(root)
            replace(root, content)
        cache.save()


def _place(view: SiteView) -> Store | None:
    shards = view.section.shards
    if shards is None:
        return None
    # only this site writes there, under names that hold a hash, so the server need not support If-None-Match
    return Store(shards, single_writer=True, **view.options(shards))


def _newest(place: Store) -> tuple[str, bytes] | None:
    """The newest complete folder, and its data.json."""
    for folder in sorted(filter(FOLDER.fullmatch, place.ls("")), key=_number, reverse=True):
        try:
            return folder, place.read(f"{folder}/{NAME}", MANIFEST_LIMIT)
        except FileNotFoundError:
            continue
    return None


def _number(folder: str) -> tuple[int, str]:
    number, _, name = folder.partition("-")
    return int(number), name


def _entries(manifest: DataManifest) -> list[FileEntry]:
    return [entry for stream in manifest.streams.values() for entry in stream.files]


def _is_here(path: Path, entry: FileEntry, cache: VerifiedFiles) -> bool:
    try:
        return path.stat().st_size == entry.bytes and cache.matches(path, entry.sha256)
    except FileNotFoundError:
        return False


def _copy(place: Store, folder: str, entry: FileEntry, root: Path, downloads: Path) -> None:
    local = place.fetch(entry, folder, downloads)  # refuses a path that would leave the folder
    target = root / entry.path
    if not target.parent.resolve().is_relative_to(root.resolve()):
        raise CorruptFile(f"{place.locate(folder)} names '{entry.path}', outside its own folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    if place.is_local:
        with local.open("rb") as source, whole_file(target) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    else:
        local.replace(target)
