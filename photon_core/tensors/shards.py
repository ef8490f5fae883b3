"""Local safetensors files on their way into a store, under names that their content gives them."""

from pathlib import Path

from photon_core.errors import CorruptFile, StoreConflict
from photon_core.store.store import Store
from photon_core.tensors.container import file_entry
from schemas.manifests import FileEntry


def put_file(store: Store, path: Path, folder: str, prefix: str = "", entry: FileEntry | None = None) -> FileEntry:
    """Upload a file, unless the store has it: no two writers ever share a name, and the same bytes go up once.

    Args:
        path: the file, finished.
        folder: where it goes.
        prefix: of its path in the manifest, which stands above `folder`.
        entry: what was found of it when it was written; looked at anew if left out. Should the file have changed
            since, whoever reads it from the store is told.

    Raises:
        CorruptFile: the store has a file of that name and another size.
    """
    entry = entry or file_entry(path, "")
    name = f"{path.stem}-{entry.sha256[:16]}.safetensors"
    place = f"{folder}/{name}"
    try:
        size = store.size(place)
    except FileNotFoundError:
        try:
            store.put(path, place)
        except StoreConflict:
            pass  # the same bytes, from another process of this site
        size = store.size(place)
    if size != entry.bytes:
        raise CorruptFile(f"{store.locate(place)} holds {size} bytes where {entry.bytes} belong; remove it")
    return entry.model_copy(update={"path": prefix + name})
