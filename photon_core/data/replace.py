"""A folder of prepared data is replaced whole: built aside, then put in its place, data.json last.

    <data>/.photon              Photon made this folder, and nothing foreign was in it then
    <data>/.next/<stream>/...   what is being prepared, copied or cut
    <data>/.next/data.json      all of it is on the disk: from here on it takes the old data's place

Stopped before .next/data.json is there, the old data are as they were; stopped after it, the next `finish` goes
on. What is removed or replaced is what data.json or a stream.json names, nothing else: a folder may hold files of
its owner's, and those stay.
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
BUILT = re.compile(  # of a stream, while it is built aside
    rf"(train|valid)/(\.cut/)?(index\.json|{SHARD}(\.zstd)?)|{re.escape(record.NAME)}|([^/]+/)*{TEMPORARY.pattern}"
)
OURS = re.compile(rf"[^/]+/({BUILT.pattern})|{re.escape(NAME)}|{TEMPORARY.pattern}")


def claim(folder: Path) -> bool:
    """Make a folder, and mark it as ours; one that held anything before gets no mark.

    Returns:
        Whether it has one.
    """
    make_folder(folder)
    found = list(folder.iterdir())
    if all(TEMPORARY.fullmatch(path.name) for path in found):  # none, or of a claim that was cut off
        for path in found:
            path.unlink(missing_ok=True)
        write_whole(folder / MARKER, MARK)
    return is_ours(folder)


def is_ours(folder: Path) -> bool:
    """Whether Photon made the folder."""
    try:
        return (folder / MARKER).read_bytes() == MARK
    except OSError:
        return False


def aside(root: Path) -> Path:
    """The folder where what will take the place of the data in `root` is built.

    Raises:
        DataError: there is one that Photon did not make.
    """
    folder = root / NEXT
    if folder.is_symlink() or not claim(folder):
        raise DataError(f"{folder}: is needed, and Photon did not make it; move it away")
    return folder


def empty_stream(root: Path, stream: str) -> Path:
    """An empty folder aside for a stream's new shards, which does not exist yet.

    Raises:
        DataError: files that are not ours are in it.
    """
    aside(root)
    folder = root / NEXT / stream
    if not clear(folder, BUILT):
        raise DataError(f"{folder}: holds files that Photon did not make; move them away")
    return folder


def drop_aside(root: Path) -> None:
    """Remove what was built aside and is not wanted."""
    folder = root / NEXT
    if is_ours(folder) and not folder.is_symlink():
        clear(folder, OURS)
        if [path.name for path in folder.iterdir()] == [MARKER]:  # the last to go: else what is left is nobody's
            (folder / MARKER).unlink()
            folder.rmdir()


def check_free(root: Path, streams: Iterable[str]) -> None:
    """Refuse to build what could not take its place, before any work.

    Raises:
        DataError: a file that no record of ours names has a name that a stream's files need.
    """
    known = recorded(root)
    if (root / NAME).exists() and NAME not in known:
        raise DataError(
            f"{root / NAME}: not a data manifest, in a folder that Photon did not make; move it away, or write "
            "another state_dir"
        )
    known |= set(_unpacked(known))
    for stream in streams:
        for folder in (root / stream, root / stream / "train", root / stream / "valid"):
            _check_folder(folder, root)
        for path in (root / stream).rglob("*") if (root / stream).is_dir() else ():
            name = path.relative_to(root).as_posix()
            if NEEDED.fullmatch(name) and name not in known:
                raise DataError(
                    f"{path}: no data.json or stream.json of Photon's names it, and the stream '{stream}' needs "
                    "its name; move it away, or give the stream another name"
                )


def _check_folder(folder: Path, root: Path) -> None:
    """Refuse a stream's folder into which files that were built aside cannot be renamed; it need not exist."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{folder}: is a link out of {root}; make it a folder")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, and a stream needs a folder there; move it away")
    if folder.stat().st_dev != root.stat().st_dev:
        raise DataError(f"{folder}: is another disk than {root}; make it a folder, or mount the disk at {root}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written; change its permissions")


def replace(root: Path, content: bytes) -> None:
    """Put what was built aside in its place; call it under the folder's lock.

    Args:
        root: the data's folder.
        content: of the new data.json. Files that it names and that are not aside are in their place already.

    Raises:
        DataError, CorruptFile: it cannot take its place; the old data are as they were.
    """
    manifest = _manifest(content, root / NAME)
    check_listed(manifest, str(root / NAME))
    check_free(root, manifest.streams)
    sync_tree(root / NEXT)
    write_whole(root / NEXT / NAME, content)
    finish(root)


def check_listed(manifest: DataManifest, where: str) -> None:
    """Refuse a data manifest whose files are not a stream's, where a stream's are.

    Raises:
        CorruptFile: naming the first.
    """
    for path in _entries(manifest):
        if not LISTED.fullmatch(path) or ".." in path.split("/") or path.startswith("."):
            raise CorruptFile(f"{where} names '{path[:200]}', which is no file of a stream")


def is_cut_off(root: Path) -> bool:
    """Whether a replacement has begun, and is not done."""
    folder = root / NEXT
    return not folder.is_symlink() and is_ours(folder) and (folder / NAME).is_file()


def finish(root: Path) -> None:
    """Go on with a replacement that was cut off; nothing where there is none. Call it under the folder's lock."""
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
    """Paths below `root` that its data.json, or a stream.json in it, names; these records, too."""
    found, records = set[str](), set[str]()
    try:
        found.update(_entries(DataManifest.model_validate_json((root / NAME).read_bytes())))
        records.add(NAME)
    except (OSError, ValidationError):
        if is_ours(root):  # damaged
            records.add(NAME)
    for path in root.glob(f"*/{record.NAME}"):
        try:
            files = record.read_record(path.parent).files
        except DataError:
            continue
        stream = path.parent.name
        own = {entry.path for entry in files if entry.path.startswith(f"{stream}/")}
        if own:  # else somebody's copy of another stream's folder
            found |= own
            records.add(f"{stream}/{record.NAME}")
    return records | {path for path in found if LISTED.fullmatch(path) and ".." not in path.split("/")}


def _manifest(content: bytes, path: Path) -> DataManifest:
    try:
        return DataManifest.model_validate_json(content)
    except ValidationError:
        raise DataError(f"{path}: not a data manifest; remove it, and run photon prepare again") from None


def _entries(manifest: DataManifest) -> list[str]:
    return [entry.path for stream in manifest.streams.values() for entry in stream.files]


def _unpacked(known: Iterable[str]) -> list[str]:
    """Where streaming unpacks these files, of those that are shards: beside them."""
    return [path.removesuffix(".zstd") for path in known if path.endswith(".mds.zstd")]
