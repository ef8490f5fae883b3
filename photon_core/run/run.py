"""A run's paths in the store, and the manifests that stand there.

    <store>/<run>/run.json
    <store>/<run>/rounds/000007/{model,optimizer,moments,download}/*.safetensors, round.json (written last)
    <store>/<run>/rounds/000007/finished/ (which of these an aggregation that was cut off had made)
    <store>/<run>/rounds/000007/sites/<site>/0001/*.safetensors, update.json (written last)
    <store>/<run>/rounds/000007/regions/0001/<inputs>/0001/model/*.safetensors, partial.json (written last)
    <store>/<run>/rounds/000007/removed.json (photon gc has taken the tensors away)

A round without updates has no files of its own: its round.json names those of another round, in that one's folder.

Round 0 holds the initial model. The sites of round t start from the model of round t-1 and write under
rounds/<t>/sites; rounds/<t>/model is the result.
"""

import itertools
import platform
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from photon_core.errors import (
    CorruptFile,
    PhotonError,
)
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.store.store import Store, check_path
from schemas.federation import Federation
from schemas.manifests import (
    FileEntry,
    Manifest,
    PartialManifest,
    RemovalManifest,
    RoundManifest,
    RunManifest,
    UpdateManifest,
)
from schemas.sections.values import NAME

ATTEMPT = re.compile(r"[0-9]{4}")
ATTEMPTS_LIMIT = 9999  # of a site in a round
MANIFEST_LIMIT = 64 << 20  # bytes; a 7B model's manifest is a few hundred kB
UPDATE_LIMIT = 1 << 20  # bytes of an update's manifest beyond four times those of the round that it follows
REMOVED = "removed.json"
PARTIAL = "partial.json"
PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "prefect", "numpy")

AnyManifest = TypeVar("AnyManifest", RunManifest, RoundManifest, UpdateManifest, PartialManifest, RemovalManifest)


class Run:
    """One run in a store.

    Args:
        store: where it lives.
        run: its name, the first folder of its paths.
        cache: a folder on this machine that keeps what is read of manifests, for later processes.
    """

    def __init__(self, store: Store, run: str, cache: Path | None = None) -> None:
        self.store = store
        self.run = _name("run", run)
        self._known: dict[str, bytes] = {}  # manifests never change once there
        self._cache = cache

    def round_dir(self, t: int) -> str:
        if t < 0:
            raise PhotonError(f"there is no round {t}: rounds count from 0")
        return f"{self.run}/rounds/{t:06d}"

    def site_dir(self, t: int, site: str, attempt: int) -> str:
        return f"{self._site(t, site)}/{attempt:04d}"

    def birth(self) -> RunManifest | None:
        """run.json, or None before the run is born."""
        return self._load(RunManifest, f"{self.run}/run.json")

    def create_birth(self, manifest: RunManifest) -> None:
        """Commit run.json. Raises StoreConflict when the run is born already."""
        self._same("run", manifest.run, self.run)
        self._commit(f"{self.run}/run.json", manifest)

    def round(self, t: int) -> RoundManifest | None:
        """Round t's manifest, or None while it is not committed."""
        manifest = self._load(RoundManifest, self._round_json(t))
        if manifest and (manifest.run, manifest.round) != (self.run, t):
            raise CorruptFile(f"{self._round_json(t)} speaks of run '{manifest.run}', round {manifest.round}")
        return manifest

    def files_dir(self, t: int) -> str:
        """The folder of the files that round t names: its own, or that of the round that it goes back to."""
        return self.round_dir(self.holder(t))

    def holder(self, t: int) -> int:
        """The round in whose folder round t's files are; t itself while it is not committed."""
        manifest = self.round(t)
        while manifest and manifest.to is not None:
            t = manifest.to
            manifest = self.round(t)
        return t

    def round_sha256(self, t: int) -> str:
        """Hash of round.json's bytes: what the next round and its updates name as their previous.

        Raises:
            PhotonError: round t is not committed.
        """
        data = self._bytes(self._round_json(t))
        if data is None:
            raise PhotonError(f"round {t} of run '{self.run}' is not committed in {self.store.url}")
        return sha256_bytes(data)

    def latest(self) -> int | None:
        """The last committed round, or None. Its link to the round before is verified.

        Raises:
            CorruptFile: the round before is missing, or another one than it names.
        """
        top = self._folders() - 1
        near = next((t for t in (top, top - 1) if t >= 0 and self.round(t)), None)  # sites begin the next round
        if near is None and self.round(0):  # and a stranger may have made more folders
            near = last_true(lambda t: self.round(t) is not None, 0, top)
        if near is not None and (manifest := self.round(near)):
            self._check_link(manifest)
        return near

    def commit_round(self, manifest: RoundManifest) -> None:
        """Commit round.json.

        Raises:
            StoreConflict: the round is committed already.
            PhotonError: the manifest does not follow from the round before, or contradicts itself.
        """
        self._same("run", manifest.run, self.run)
        self._same("model_sha256", manifest.model_sha256, model_sha256(manifest.model))
        self._check_link(manifest)
        self._check_to(manifest)
        self._commit(self._round_json(manifest.round), manifest)

    def commit_update(self, manifest: UpdateManifest) -> None:
        """Commit update.json. Raises StoreConflict when this attempt is committed already."""
        self._same("run", manifest.run, self.run)
        self._commit(self._update_json(manifest.round, manifest.site, manifest.attempt), manifest)

    def update(self, t: int, site: str, attempt: int) -> UpdateManifest | None:
        """One attempt's update manifest, or None while it is not committed.

        Raises:
            CorruptFile: it is not a manifest, or speaks of another update than its place says.
        """
        path = self._update_json(t, site, attempt)
        # a stranger wrote it: it names the same tensors as the round, so it cannot be much longer
        limit = UPDATE_LIMIT + 4 * len(self._bytes(self._round_json(t - 1)) or b"") if t else UPDATE_LIMIT
        manifest = self._load(UpdateManifest, path, min(limit, MANIFEST_LIMIT))
        if manifest:
            found = (manifest.run, manifest.round, manifest.site, manifest.attempt)
            if found != (self.run, t, site, attempt):
                raise CorruptFile(f"{path} speaks of run, round, site, attempt {found!r}: not those of its place")
        return manifest

    def updates(self, t: int, site: str) -> list[UpdateManifest]:
        """A site's committed updates for round t, by attempt. Raises CorruptFile as `update` does."""
        found = (self.update(t, site, attempt) for attempt in self._attempts(t, site))
        return [manifest for manifest in found if manifest]

    def update_sha256(self, t: int, site: str, attempt: int) -> str:
        """Hash of update.json's bytes. Raises PhotonError when it is not committed."""
        data = self._bytes(self._update_json(t, site, attempt))
        if data is None:
            raise PhotonError(f"attempt {attempt} of site '{site}' for round {t} is not committed")
        return sha256_bytes(data)

    def partial(self, folder: str) -> PartialManifest | None:
        """The partial aggregate of a folder (aggregation/tree.py), or None while it is not committed."""
        return self._load(PartialManifest, f"{folder}/{PARTIAL}")

    def partial_sha256(self, folder: str) -> str:
        """Hash of partial.json's bytes. Raises PhotonError when it is not committed."""
        data = self._bytes(f"{folder}/{PARTIAL}")
        if data is None:
            raise PhotonError(f"there is no partial aggregate in {self.store.locate(folder)}")
        return sha256_bytes(data)

    def commit_partial(self, folder: str, manifest: PartialManifest) -> None:
        """Commit partial.json. Raises StoreConflict when it is there."""
        self._same("run", manifest.run, self.run)
        self._commit(f"{folder}/{PARTIAL}", manifest)

    def removed(self, t: int) -> RemovalManifest | None:
        """The note that `photon gc` took round t's tensors away; None while they are there."""
        return self._load(RemovalManifest, f"{self.round_dir(t)}/{REMOVED}")

    def record_removal(self, manifest: RemovalManifest) -> None:
        """Write that note, before anything is removed. Raises StoreConflict when it is there."""
        self._same("run", manifest.run, self.run)
        self._commit(f"{self.round_dir(manifest.round)}/{REMOVED}", manifest)

    def next_attempt(self, t: int, site: str) -> int:
        """The first attempt number that nobody has used, committed or not."""
        return max(self._attempts(t, site), default=0) + 1

    def committed_attempt(self, t: int, site: str) -> int:
        """The last of the site's committed attempts, which follow each other from 1 on; 0 if there are none.

        Raises:
            CorruptFile: there are more than anybody makes.
        """

        def committed(attempt: int) -> bool:
            return self.store.exists(self._update_json(t, site, attempt))

        last = last_true(committed, 1, ATTEMPTS_LIMIT) if committed(1) else 0
        if last == ATTEMPTS_LIMIT:
            raise CorruptFile(f"{self.store.locate(self._site(t, site))} holds {last} attempts or more")
        return last

    def _folders(self) -> int:
        """How many rounds have a folder, from 0 on without a gap: no round is committed beyond them."""
        there = set(self.store.ls(f"{self.run}/rounds"))
        return next(t for t in itertools.count() if f"{t:06d}" not in there)

    def _site(self, t: int, site: str) -> str:
        return f"{self.round_dir(t)}/sites/{_name('site', site)}"

    def _attempts(self, t: int, site: str) -> list[int]:
        names = self.store.ls(self._site(t, site))
        return sorted(int(name) for name in names if ATTEMPT.fullmatch(name) and int(name) <= ATTEMPTS_LIMIT)

    def _round_json(self, t: int) -> str:
        return f"{self.round_dir(t)}/round.json"

    def _update_json(self, t: int, site: str, attempt: int) -> str:
        return f"{self.site_dir(t, site, attempt)}/update.json"

    def _bytes(self, path: str, limit: int = MANIFEST_LIMIT) -> bytes | None:
        if path not in self._known:
            try:
                self._known[path] = self._read(path, limit)
            except FileNotFoundError:
                return None
        return self._known[path]

    def _read(self, path: str, limit: int) -> bytes:
        if self._cache is None:
            return self.store.read(path, limit)
        kept = self._cache / sha256_bytes(f"{self.store.url}/{path}".encode())
        try:
            return kept.read_bytes()
        except FileNotFoundError:
            data = self.store.read(path, limit)
        self._cache.mkdir(parents=True, exist_ok=True)  # whoever cleans temporary folders may have been here
        part = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
        part.write_bytes(data)
        part.replace(kept)
        return data

    def _load(self, kind: type[AnyManifest], path: str, limit: int = MANIFEST_LIMIT) -> AnyManifest | None:
        data = self._bytes(path, limit)
        if data is None:
            return None
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:200] or "the whole"
            raise CorruptFile(f"{self.store.locate(path)} is not a manifest: {where}: {first['msg']}") from None

    def _commit(self, path: str, manifest: Manifest) -> None:
        data = manifest_bytes(manifest)
        if len(data) > MANIFEST_LIMIT:  # nobody would read it, and nothing is ever overwritten
            where = self.store.locate(path)
            raise PhotonError(f"{where} would hold {len(data)} bytes; at most {MANIFEST_LIMIT} are read")
        self.store.create(path, data)

    def _check_link(self, manifest: RoundManifest) -> None:
        previous = self.round_sha256(manifest.round - 1) if manifest.round else ""
        if manifest.previous_sha256 != previous:
            raise CorruptFile(
                f"round {manifest.round} of run '{self.run}' names '{manifest.previous_sha256[:16]}' as the round "
                f"before, which is '{previous[:16]}': the chain is broken"
            )

    def _check_to(self, manifest: RoundManifest) -> None:
        """A round without updates names the files of a committed round, all of them and no others."""
        if manifest.to is not None:
            base = self.round(manifest.to)
            if base is None or files_of(base) != files_of(manifest):
                raise PhotonError(
                    f"round {manifest.round} does not name the files of a committed round {manifest.to}"
                )

    def _same(self, what: str, found: str, expected: str) -> None:
        if found != expected:
            raise PhotonError(f"the manifest's {what} is '{found}', but '{expected}' belongs there")


def last_true(holds: Callable[[int], bool], low: int, limit: int) -> int:
    """The last number, `limit` at most, before one where something ends to hold; asks for few of them.

    Args:
        holds: whether it holds for a number; it does for `low`.
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
    """Everything that the next round may read of a round."""
    return [*manifest.model, *manifest.download, *manifest.optimizer, *manifest.moments]


def manifest_bytes(manifest: Manifest) -> bytes:
    """A manifest as it is written: canonical JSON and a newline."""
    return canonical_json(manifest.model_dump(mode="json")) + b"\n"


def model_sha256(files: Sequence[FileEntry]) -> str:
    """Hash of a model: sha256 over its files' hashes, in order, each as 64 hexadecimal digits and a newline.

    File names do not count: the same tensors in the same shards are the same model.
    """
    return sha256_bytes("".join(f"{file.sha256}\n" for file in files).encode())


def versions() -> dict[str, str]:
    """Versions of what shapes the result, read from the installed packages without importing them."""
    found = {"photon": _version("photon-prefect"), "python": platform.python_version()}
    return found | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _name(kind: str, name: str) -> str:
    check_path(name)
    if not NAME.fullmatch(name):
        raise PhotonError(f"{name!r} cannot name a {kind}: use letters, digits, '.', '_' and '-'")
    return name


def run_of(federation: Federation) -> Run:
    """The federation's run in its store."""
    return Run(Store(federation.store, **federation.storage.store_options()), federation.run)


def federation_sha256(federation: Federation) -> str:
    return sha256_bytes(canonical_json(federation.model_dump(mode="json")))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def precise_now() -> str:
    """The same to the microsecond: no two commits have it in common."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
