"""A run in the store: its manifests by name, the chain of its rounds, and the committed updates of its sites.

Round 0 holds the initial model. The sites of round t start from the model of round t-1 and write under
rounds/<t>/sites; rounds/<t>/model is the result. A round without updates (a rollback) has no files: its round.json
names the files in another round's folder.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from photon_core.errors import CorruptFile, PhotonError
from photon_core.hashing import sha256_bytes
from photon_core.run.objects import MANIFEST_LIMIT, Objects
from photon_core.run.paths import Place, PlaceKind
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.manifests import (
    DownManifest,
    FileEntry,
    PartialManifest,
    RemovalManifest,
    Residual,
    RoundManifest,
    RunManifest,
    StartManifest,
    UpdateManifest,
)

ATTEMPTS_LIMIT = 9999  # of a site in a round
START_LIMIT = 16 << 20  # bytes
UPDATE_LIMIT = 1 << 20  # bytes of an update's manifest, beyond four times the manifest of the round before
RUNS_LIMIT = 16  # runs that a process keeps in memory


class Run(Objects):
    """One run in a store; arguments as for `Objects`."""

    def round_dir(self, t: int) -> str:
        return Place(PlaceKind.ROUND, self.run, t).path

    def site_folder(self, t: int, site: str) -> str:
        return Place(PlaceKind.SITE, self.run, t, site).path

    def site_dir(self, t: int, site: str, attempt: int) -> str:
        return Place(PlaceKind.ATTEMPT, self.run, t, site, attempt).path

    def run_manifest(self) -> RunManifest | None:
        """run.json; None before the run has started."""
        return self.load(RunManifest, Place(PlaceKind.RUN_JSON, self.run))

    def create_run(self, manifest: RunManifest) -> None:
        """Commit run.json.

        Raises:
            StoreConflict: the run has already started.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(Place(PlaceKind.RUN_JSON, self.run), manifest)

    def round(self, t: int) -> RoundManifest | None:
        """Round t's manifest; None if it is not committed."""
        place = self._round_json(t)
        manifest = self.load(RoundManifest, place)
        if manifest and (manifest.run, manifest.round) != (self.run, t):
            raise CorruptFile(
                f"{place.path} names run '{manifest.run}', round {manifest.round}: not those of its path"
            )
        return manifest

    def files_dir(self, t: int) -> str:
        """The folder of the files that round t names: its own, or that of the round that it rolls back to."""
        return self.round_dir(self.holder(t))

    def holder(self, t: int) -> int:
        """The round whose folder holds round t's files; t itself if it is not committed."""
        manifest = self.round(t)
        while manifest and manifest.to is not None:
            t = manifest.to
            manifest = self.round(t)
        return t

    def round_sha256(self, t: int) -> str:
        """Hash of round.json's bytes, which the next round and its updates name as `previous_sha256`.

        Raises:
            PhotonError: round t is not committed.
        """
        data = self.read(self._round_json(t))
        if data is None:
            raise PhotonError(f"round {t} of run '{self.run}' is not committed in {self.store.url}")
        return sha256_bytes(data)

    def latest(self) -> int | None:
        """The last committed round, or None. Its link to the round before is verified.

        Raises:
            CorruptFile: the round before is missing, or is not the one that the last round names.
        """
        top = self._folders() - 1
        near = next((t for t in (top, top - 1) if t >= 0 and self.round(t)), None)  # the next one may be open
        if near is None and self.round(0):  # an untrusted writer may have created more folders
            near = last_true(lambda t: self.round(t) is not None, 0, top)
        if near is not None and (manifest := self.round(near)):
            self._check_link(manifest)
        return near

    def commit_round(self, manifest: RoundManifest) -> None:
        """Commit round.json.

        Raises:
            StoreConflict: the round is already committed.
            PhotonError: the manifest does not follow from the round before, or contradicts itself.
        """
        self._same("run", manifest.run, self.run)
        self._same("model_sha256", manifest.model_sha256, model_sha256(manifest.model))
        self._check_link(manifest)
        self._check_to(manifest)
        self.commit_manifest(self._round_json(manifest.round), manifest)

    def commit_update(self, manifest: UpdateManifest) -> None:
        """Commit update.json.

        Raises:
            StoreConflict: this attempt is already committed.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(self._update_json(manifest.round, manifest.site, manifest.attempt), manifest)

    def update(self, t: int, site: str, attempt: int) -> UpdateManifest | None:
        """One attempt's update manifest; None if it is not committed.

        Raises:
            CorruptFile: it is not a manifest, or names another update than its path.
        """
        place = self._update_json(t, site, attempt)
        # it is untrusted, and names the same tensors as the round, so it cannot be much longer
        limit = UPDATE_LIMIT + 4 * len(self.read(self._round_json(t - 1)) or b"") if t else UPDATE_LIMIT
        manifest = self.load(UpdateManifest, place, min(limit, MANIFEST_LIMIT))
        if manifest:
            named = (manifest.run, manifest.round, manifest.site, manifest.attempt)
            if named != (self.run, t, site, attempt):
                raise CorruptFile(f"{place.path} names run, round, site, attempt {named!r}: not those of its path")
        return manifest

    def update_sha256(self, t: int, site: str, attempt: int) -> str:
        """Hash of update.json's bytes.

        Raises:
            PhotonError: the attempt is not committed.
        """
        data = self.read(self._update_json(t, site, attempt))
        if data is None:
            raise PhotonError(f"attempt {attempt} of site '{site}' for round {t} is not committed")
        return sha256_bytes(data)

    def start(self, site: str, attempt: int) -> StartManifest | None:
        """The manifest of a site's checkpoint that the run may start from; None if it is not committed.

        Raises:
            CorruptFile: it is not a manifest, or names another place than its path.
        """
        place = self._start_json(site, attempt)
        manifest = self.load(StartManifest, place, START_LIMIT)
        if manifest and (manifest.run, manifest.site, manifest.attempt) != (self.run, site, attempt):
            where = self.store.locate(place.path)
            raise CorruptFile(f"{where} names another run, site or attempt than its path")
        return manifest

    def commit_start(self, manifest: StartManifest) -> None:
        """Commit start.json.

        Raises:
            StoreConflict: this attempt is already committed.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(self._start_json(manifest.site, manifest.attempt), manifest)

    def residuals(self, t: int, member: str) -> list[Residual]:
        """The residuals that a member enters round t with; none while they are not committed.

        Raises:
            CorruptFile: it is not a manifest, or names another place than its path.
        """
        place = Place(PlaceKind.DOWN, self.run, t, member)
        manifest = self.load(DownManifest, place, START_LIMIT)
        if manifest and (manifest.run, manifest.round, manifest.member) != (self.run, t, member):
            raise CorruptFile(f"{self.store.locate(place.path)} names another run, round or member than its path")
        return manifest.residuals if manifest else []

    def commit_residuals(self, manifest: DownManifest) -> None:
        """Commit down.json.

        Raises:
            StoreConflict: it exists.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(Place(PlaceKind.DOWN, self.run, manifest.round, manifest.member), manifest)

    def partial(self, mean: Place) -> PartialManifest | None:
        """The partial aggregate of a region (aggregation/tree.py); None if it is not committed."""
        return self.load(PartialManifest, replace(mean, kind=PlaceKind.PARTIAL))

    def partial_sha256(self, mean: Place) -> str:
        """Hash of partial.json's bytes.

        Raises:
            PhotonError: the partial aggregate is not committed.
        """
        data = self.read(replace(mean, kind=PlaceKind.PARTIAL))
        if data is None:
            raise PhotonError(f"there is no partial aggregate in {self.store.locate(mean.path)}")
        return sha256_bytes(data)

    def commit_partial(self, mean: Place, manifest: PartialManifest) -> None:
        """Commit partial.json.

        Raises:
            StoreConflict: it exists.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(replace(mean, kind=PlaceKind.PARTIAL), manifest)

    def removed(self, t: int) -> RemovalManifest | None:
        """The note that `photon gc` has removed round t's tensors; None if it has not."""
        return self.load(RemovalManifest, Place(PlaceKind.REMOVED, self.run, t))

    def record_removal(self, manifest: RemovalManifest) -> None:
        """Write the note of a removal, before anything is removed.

        Raises:
            StoreConflict: the note exists.
        """
        self._same("run", manifest.run, self.run)
        self.commit_manifest(Place(PlaceKind.REMOVED, self.run, manifest.round), manifest)

    def committed_attempt(self, t: int, site: str) -> int:
        """The last of the site's committed attempts, which are numbered from 1 without a gap; 0 if there are none.

        Raises:
            CorruptFile: there are too many.
        """

        def committed(attempt: int) -> bool:
            return self.exists(self._update_json(t, site, attempt))

        last = last_true(committed, 1, ATTEMPTS_LIMIT) if committed(1) else 0
        if last == ATTEMPTS_LIMIT:
            where = self.store.locate(self.site_folder(t, site))
            raise CorruptFile(f"{where} holds {last} attempts or more")
        return last

    def _folders(self) -> int:
        """Number of rounds with a folder, from 0 on without a gap. No round is committed beyond them."""
        existing = {place.t for place in self.children(Place(PlaceKind.ROUNDS, self.run), PlaceKind.ROUND)}
        return next(t for t in itertools.count() if t not in existing)

    def _round_json(self, t: int) -> Place:
        return Place(PlaceKind.ROUND_JSON, self.run, t)

    def _update_json(self, t: int, site: str, attempt: int) -> Place:
        return Place(PlaceKind.UPDATE, self.run, t, site, attempt)

    def _start_json(self, site: str, attempt: int) -> Place:
        return Place(PlaceKind.START, self.run, 0, site, attempt)

    def _check_link(self, manifest: RoundManifest) -> None:
        previous = self.round_sha256(manifest.round - 1) if manifest.round else ""
        if manifest.previous_sha256 != previous:
            raise CorruptFile(
                f"round {manifest.round} of run '{self.run}' names '{manifest.previous_sha256[:16]}' as the round "
                f"before, which is '{previous[:16]}': the chain is broken"
            )

    def _check_to(self, manifest: RoundManifest) -> None:
        """Check that a round without updates names exactly the files of a committed round."""
        if manifest.to is not None:
            base = self.round(manifest.to)
            if base is None or files_of(base) != files_of(manifest):
                raise PhotonError(
                    f"round {manifest.round} does not name the files of a committed round {manifest.to}"
                )

    def _same(self, what: str, actual: str, expected: str) -> None:
        if actual != expected:
            raise PhotonError(f"the manifest's {what} is '{actual}', but '{expected}' is expected")


def last_true(holds: Callable[[int], bool], low: int, limit: int) -> int:
    """The last number up to `limit` for which a predicate holds, found by doubling and bisection.

    Args:
        holds: predicate, true up to some number and false beyond it.
        low: number for which it holds.
        limit: largest number to try.
    """
    step = 1
    while low + step <= limit and holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def files_of(manifest: RoundManifest) -> list[FileEntry]:
    """All files of a round that the next round may read."""
    return [*manifest.model, *manifest.download, *manifest.optimizer, *manifest.moments]


def model_sha256(files: Sequence[FileEntry]) -> str:
    """Hash of a model: sha256 over its files' hashes, in order, each as 64 hexadecimal digits and a newline.

    File names are not part of it: the same tensors in the same shards are the same model.
    """
    return sha256_bytes("".join(f"{file.sha256}\n" for file in files).encode())


def run_of(federation: Federation, store: str | None = None, run: str | None = None) -> Run:
    """The federation's run in its store. One process always gets the same object, which caches what it has read.

    Args:
        federation: federation file, with the storage options.
        store, run: store and name of another run than the federation's.
    """
    options = federation.storage.store_options()
    result = Run(Store(store or federation.store, **options), run or federation.run)
    key = (result.store.url, json.dumps(options, sort_keys=True, default=repr), result.run)
    with _lock:
        result = _runs[key] = _runs.pop(key, result)
        while len(_runs) > RUNS_LIMIT:
            del _runs[next(iter(_runs))]
    return result


def forget_runs() -> None:
    """Clear this process's cache of runs, for stores that were emptied under it, and after a fork."""
    global _lock
    _lock = threading.Lock()
    _runs.clear()


_runs: dict[tuple[str, str, str], Run] = {}
_lock = threading.Lock()
os.register_at_fork(after_in_child=forget_runs)  # a thread of the parent may have held the lock
