"""A site's copies of the global model: fetched once, verified at each use, and gone when no round needs them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from photon_core.files import TEMPORARY
from photon_core.run.run import Run
from photon_core.store.store import SHA256
from schemas.manifests import FileEntry

LEFT_SECONDS = 86_400.0  # after which a download that was cut off is litter


def fetch_model(run: Run, t: int, entries: Sequence[FileEntry], cache: Path, connections: int) -> list[Path]:
    """Local paths of files of round t: the store's own on a local disk, else copies in `cache`.

    What the cache has of other rounds than t and t-1 is dropped: a late site may still train from the one before.

    Args:
        run, t: the round, committed or not.
        entries: its files.
        cache: a folder of the site's for this run alone.
        connections: files that are fetched at a time.

    Raises:
        CorruptFile: a file is not the one that the entries say.
    """
    found = run.store.fetch_all(entries, run.files_dir(t), cache, connections)
    if not run.store.is_local:
        manifests = [manifest for r in (t - 1, t) if r >= 0 and (manifest := run.round(r))]
        kept = {e.sha256 for m in manifests for e in (*m.model, *m.download, *m.moments)}
        _drop_others(cache, kept | {path.name for path in found})
    return found


def _drop_others(cache: Path, kept: set[str]) -> None:
    for path in cache.iterdir() if cache.is_dir() else ():
        with suppress(FileNotFoundError):  # another download of the site's has just been finished
            if SHA256.fullmatch(path.name):
                gone = path.name not in kept
            else:
                gone = bool(TEMPORARY.fullmatch(path.name)) and time.time() - path.stat().st_mtime > LEFT_SECONDS
            if gone:
                path.unlink()
