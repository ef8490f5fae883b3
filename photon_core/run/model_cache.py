"""A site's copies of the global model: fetched once, verified at each use, removed when no round needs them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from photon_core.files import TEMPORARY
from photon_core.run.run import Run
from photon_core.store.store import SHA256
from schemas.manifests import FileEntry

LEFT_SECONDS = 86_400.0  # age from which an interrupted download is removed


def fetch_model(run: Run, t: int, entries: Sequence[FileEntry], cache: Path, connections: int) -> list[Path]:
    """Local paths of files of round t: the store's own files on a local disk, else copies in `cache`.

    Cached files of other rounds than t and t-1 are removed. Round t-1 is kept because a late site may still train
    from it.

    Args:
        run, t: run and number of the round, committed or not.
        entries: manifest entries of the files.
        cache: folder of the site for this run alone.
        connections: number of concurrent downloads.

    Raises:
        CorruptFile: a file is not the one that its entry describes.
    """
    paths = run.store.fetch_all(entries, run.files_dir(t), cache, connections)
    if not run.store.is_local:
        manifests = [manifest for r in (t - 1, t) if r >= 0 and (manifest := run.round(r))]
        kept = {e.sha256 for m in manifests for e in (*m.model, *m.download, *m.moments)}
        _drop_others(cache, kept | {path.name for path in paths})
    return paths


def _drop_others(cache: Path, kept: set[str]) -> None:
    for path in cache.iterdir() if cache.is_dir() else ():
        with suppress(FileNotFoundError):  # a concurrent download of the site has just finished
            if SHA256.fullmatch(path.name):
                gone = path.name not in kept
            else:
                gone = bool(TEMPORARY.fullmatch(path.name)) and time.time() - path.stat().st_mtime > LEFT_SECONDS
            if gone:
                path.unlink()
