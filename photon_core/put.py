"""Local safetensors files on their way into a store, under names that their content gives them."""

from pathlib import Path

from photon_core.errors import CorruptFile, StoreConflict
from photon_core.store import Store
from photon_core.tensors import file_entry
from schemas.manifests import FileEntry


def put_file(store: Store, path: Path, folder: str, prefix: str = "") -> FileEntry:
    """Upload a file, unless the store has it: no two writers ever share a name, and the same bytes go up once.

    Args:
        path: the file, finished.
        folder: where it goes.
        prefix: of its path in the manifest, which stands above `folder`.

    Raises:
        CorruptFile: the store has a file of that name and another size.
    """
    entry = file_entry(path, "")
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
