"""The objects of a run: the only call that creates them, and the only call that reads them.

An object is small, immutable and part of the record: a manifest, a site's scores, a report. Code that signs or
verifies objects belongs here.
"""

import threading
import uuid
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from photon_core.errors import CorruptFile, PhotonError
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.paths import Place, PlaceKind, place_at
from photon_core.store.interface import Found
from photon_core.store.store import Store, check_path
from schemas.manifests import Manifest

MANIFEST_LIMIT = 64 << 20  # bytes; a 7B model's manifest is a few hundred kB
KNOWN_LIMIT = 256 << 20  # bytes of a run's objects that a process keeps

AnyManifest = TypeVar("AnyManifest", bound=Manifest)


class Objects:
    """The objects of one run in a store. Safe to use from several threads.

    Args:
        store: store of the run.
        run: name of the run, the first folder of its paths.
        cache: folder on this machine that keeps read objects for later processes.
    """

    def __init__(self, store: Store, run: str, cache: Path | None = None) -> None:
        self.store = store
        self.run = Place(PlaceKind.RUN, run).path
        self._known: dict[str, bytes] = {}  # objects never change once they exist
        self._known_bytes, self._lock = 0, threading.Lock()
        self._cache = cache

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store, self.run, self._cache)

    def commit(self, place: Place, data: bytes) -> None:
        """Create an object. All objects are created by this call.

        Raises:
            StoreConflict: the object exists.
        """
        self.store.create(place.path, data)

    def read(self, place: Place, limit: int = MANIFEST_LIMIT) -> bytes | None:
        """Read an object; None if it does not exist. All objects are read by this call.

        Raises:
            CorruptFile: the object is larger than `limit` bytes.
        """
        path = place.path
        with self._lock:
            data = self._known.pop(path, None)
            if data is not None:
                self._known[path] = data  # now the last to be forgotten
                return data
        try:
            data = self._fetch(path, limit)
        except FileNotFoundError:
            return None
        with self._lock:
            self._known_bytes += len(data) - len(self._known.pop(path, b""))
            self._known[path] = data
            while self._known_bytes > KNOWN_LIMIT:
                self._known_bytes -= len(self._known.pop(next(iter(self._known))))
        return data

    def exists(self, place: Place) -> bool:
        return self.store.exists(place.path)

    def files(self) -> list[Found]:
        """Every file in the rounds' folders whose name is valid in a store, also if Photon did not create it."""
        places = ((file, place_at(file.path)) for file in self.store.walk(self.run))
        return [file for file, place in places if place and place.run == self.run and _is_possible(file.path)]

    def load(self, kind: type[AnyManifest], place: Place, limit: int = MANIFEST_LIMIT) -> AnyManifest | None:
        """A manifest; None if it does not exist.

        Raises:
            CorruptFile: the object is not a manifest, or larger than `limit` bytes.
        """
        data = self.read(place, limit)
        if data is None:
            return None
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:200] or "the whole"
            text = f"{self.store.locate(place.path)} is not a manifest: {where}: {first['msg']}"
            raise CorruptFile(text) from None

    def commit_manifest(self, place: Place, manifest: Manifest) -> None:
        """Create a manifest.

        Raises:
            StoreConflict: the manifest exists.
            PhotonError: the manifest is too large to be read again.
        """
        data = manifest_bytes(manifest)
        if len(data) > MANIFEST_LIMIT:  # no reader would accept it, and nothing is ever overwritten
            where = self.store.locate(place.path)
            raise PhotonError(f"{where} would hold {len(data)} bytes; at most {MANIFEST_LIMIT} are read")
        self.commit(place, data)

    def children(self, folder: Place, kind: PlaceKind) -> list[Place]:
        """Places of one kind in a folder."""
        places = (place_at(f"{folder.path}/{name}") for name in self.store.ls(folder.path))
        return [place for place in places if place is not None and place.kind is kind]

    def _fetch(self, path: str, limit: int) -> bytes:
        if self._cache is None:
            return self.store.read(path, limit)
        kept = self._cache / sha256_bytes(f"{self.store.url}/{path}".encode())
        try:
            return kept.read_bytes()
        except FileNotFoundError:
            data = self.store.read(path, limit)
        self._cache.mkdir(parents=True, exist_ok=True)  # a cleaner of temporary folders may have removed it
        part = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
        part.write_bytes(data)
        part.replace(kept)
        return data


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of a manifest in the store: canonical JSON and a newline."""
    return canonical_json(manifest.model_dump(mode="json")) + b"\n"


def _is_possible(path: str) -> bool:
    """Whether the path is valid in a store. Other files are neither touched nor shown."""
    try:
        check_path(path)
    except PhotonError:
        return False
    return True
