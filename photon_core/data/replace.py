"""Replacing a folder of prepared data as a whole: new data are built aside, then moved into place, data.json last.

    <data>/.photon              Photon created this folder, and it held nothing foreign then
    <data>/.next/<stream>/...   the new data while they are prepared, copied or cut
    <data>/.next/data.json      the new data are complete and on the disk: from now on they replace the old data

An interruption before .next/data.json exists leaves the old data unchanged. After a later one, the next `finish`
continues. Only files that data.json or a stream.json names are removed or replaced: the folder may hold files of
its owner, which are kept.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from photon_core.data import record
from photon_core.data.manifest import NAME
from photon_core.errors import CorruptFile, DataError
from photon_core.files import TEMPORARY, clear, make_folder, remove_listed, sync_folder, sync_tree, write_whole
from schemas.manifests import DataManifest

NEXT = ".next"
MARKER = ".photon"
MARK = b"Photon made this folder.\n"
LISTED = re.compile(rf"[^/]+/(train|valid)/[^/]+|[^/]+/{re.escape(record.NAME)}")
SHARD = r"(part-\d+-\d+\.)?shard\.\d+\.mds"
NEEDED = re.compile(rf"[^/]+/(train|valid)/(index\.json|{SHARD}(\.zstd)?)|[^/]+/{re.escape(record.NAME)}")
BUILT = re.compile(  # files of a stream while it is built aside
    rf"(train|valid)/(\.cut/)?(index\.json|{SHARD}(\.zstd)?)|{re.escape(record.NAME)}|([^/]+/)*{TEMPORARY.pattern}"
)
OURS = re.compile(rf"[^/]+/({BUILT.pattern})|{re.escape(NAME)}|{TEMPORARY.pattern}")


def claim(folder: Path) -> bool:
    """Create a folder and mark it as Photon's. A folder that already holds something gets no mark.

    Returns:
        Whether the folder has the mark.
    """
    make_folder(folder)
    content = list(folder.iterdir())
    if all(TEMPORARY.fullmatch(path.name) for path in content):  # empty, or left by an interrupted claim
        for path in content:
            path.unlink(missing_ok=True)
        write_whole(folder / MARKER, MARK)
    return is_ours(folder)


def is_ours(folder: Path) -> bool:
    """Whether Photon created the folder."""
    try:
        return (folder / MARKER).read_bytes() == MARK
    except OSError:
        return False


def aside(root: Path) -> Path:
    """The folder in which new data for `root` are built.

    Raises:
        DataError: there is a folder of that name that Photon did not create.
    """
    folder = root / NEXT
    if folder.is_symlink() or not claim(folder):
        raise DataError(f"{folder}: Photon needs this folder and did not create it; move it away")
    return folder


def empty_stream(root: Path, stream: str) -> Path:
    """A path for a stream's new shards, where nothing exists any more.

    Raises:
        DataError: the folder holds files that are not Photon's.
    """
    aside(root)
    folder = root / NEXT / stream
    if not clear(folder, BUILT):
        raise DataError(f"{folder}: holds files that Photon did not create; move them away")
    return folder


def drop_aside(root: Path) -> None:
    """Remove data that were built aside and are not used."""
    folder = root / NEXT
    if is_ours(folder) and not folder.is_symlink():
        clear(folder, OURS)
        if [path.name for path in folder.iterdir()] == [MARKER]:  # the last: without it the rest is not Photon's
            (folder / MARKER).unlink()
            folder.rmdir()


def check_free(root: Path, streams: Iterable[str]) -> None:
    """Refuse, before any work, to build data that could not be moved into place.

    Raises:
        DataError: a file that none of Photon's records names has a name that a stream needs.
    """
    known = recorded(root)
    if (root / NAME).exists() and NAME not in known:
        raise DataError(
            f"{root / NAME}: not a data manifest, and in a folder that Photon did not create; move it away, or "
            "write another state_dir"
        )
    known |= set(_unpacked(known))
    for stream in streams:
        for folder in (root / stream, root / stream / "train", root / stream / "valid"):
            _check_folder(folder, root)
        for path in (root / stream).rglob("*") if (root / stream).is_dir() else ():
            name = path.relative_to(root).as_posix()
            if NEEDED.fullmatch(name) and name not in known:
                raise DataError(
                    f"{path}: has a name that stream '{stream}' needs, but no data.json or stream.json of Photon "
                    "lists it; move it away, or give the stream another name"
                )


def _check_folder(folder: Path, root: Path) -> None:
    """Refuse a stream's folder into which files from aside cannot be renamed. The folder need not exist."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{folder}: is a link out of {root}; replace it by a folder")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, but a stream needs a folder of this name; move it away")
    if folder.stat().st_dev != root.stat().st_dev:
        raise DataError(
            f"{folder}: is on another disk than {root}; replace it by a folder, or mount the disk at {root}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: is not writable; change its permissions")


def replace(root: Path, content: bytes) -> None:
    """Move data that were built aside into place. The caller holds the folder's lock.

    Args:
        root: folder of the data.
        content: bytes of the new data.json. Files that it names and that are not aside must be in place.

    Raises:
        DataError, CorruptFile: the data cannot be moved into place; the old data are unchanged.
    """
    manifest = _manifest(content, root / NAME)
    check_listed(manifest, str(root / NAME))
    check_free(root, manifest.streams)
    sync_tree(root / NEXT)
    write_whole(root / NEXT / NAME, content)
    finish(root)


def check_listed(manifest: DataManifest, where: str) -> None:
    """Refuse a data manifest that names other files than a stream's.

    Raises:
        CorruptFile: the manifest names such a file; the message names the first.
    """
    for path in _entries(manifest):
        if not LISTED.fullmatch(path) or ".." in path.split("/") or path.startswith("."):
            raise CorruptFile(f"{where} names '{path[:200]}', which is not a file of a stream")


def is_cut_off(root: Path) -> bool:
    """Whether a replacement was interrupted."""
    folder = root / NEXT
    return not folder.is_symlink() and is_ours(folder) and (folder / NAME).is_file()


def finish(root: Path) -> None:
    """Complete an interrupted replacement, if there is one. The caller holds the folder's lock."""
    folder = root / NEXT
    if not is_cut_off(root):
        return
    content = (folder / NAME).read_bytes()
    new = _entries(_manifest(content, folder / NAME))
    gone = sorted(recorded(root) - {*new, NAME})
    moved = [path for path in new if (folder / path).is_file()]
    remove_listed(root, [*gone, *_unpacked([*gone, *moved])])
    for path in moved:
        target = root / path
        make_folder(target.parent)
        (folder / path).replace(target)
    for place in {(root / path).parent for path in moved}:
        sync_folder(place)
    (folder / NAME).replace(root / NAME)
    sync_folder(root)
    drop_aside(root)


def recorded(root: Path) -> set[str]:
    """Paths below `root` that its data.json or a stream.json names, and these records themselves."""
    listed, records = set[str](), set[str]()
    try:
        listed.update(_entries(DataManifest.model_validate_json((root / NAME).read_bytes())))
        records.add(NAME)
    except (OSError, ValidationError):
        if is_ours(root):  # Photon's, but damaged
            records.add(NAME)
    for path in root.glob(f"*/{record.NAME}"):
        try:
            files = record.read_record(path.parent).files
        except DataError:
            continue
        stream = path.parent.name
        own = {entry.path for entry in files if entry.path.startswith(f"{stream}/")}
        if own:  # otherwise it is a copy of another stream's folder
            listed |= own
            records.add(f"{stream}/{record.NAME}")
    return records | {path for path in listed if LISTED.fullmatch(path) and ".." not in path.split("/")}


def _manifest(content: bytes, path: Path) -> DataManifest:
    try:
        return DataManifest.model_validate_json(content)
    except ValidationError:
        raise DataError(f"{path}: not a data manifest; remove it, and run photon prepare again") from None


def _entries(manifest: DataManifest) -> list[str]:
    return [entry.path for stream in manifest.streams.values() for entry in stream.files]


def _unpacked(known: Iterable[str]) -> list[str]:
    """Paths of the copies that streaming unpacks beside these shards."""
    return [path.removesuffix(".zstd") for path in known if path.endswith(".mds.zstd")]
