"""Resume of an interrupted pass: a pass over the same inputs reuses the shards that were finished.

    rounds/<t>/finished/<hash of all inputs>/<number>.json

A record is written when a shard of the new model, and the same shard of the optimizer's state, are durable, and
the hashes of all their input files are verified. It is used if the hashes of its files are correct.
"""

from collections.abc import Mapping, Sequence

from photon_core.aggregation.engine.inputs import Pass
from photon_core.errors import PhotonError, StoreConflict, StoreRefused, StoreUnavailable
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.objects import manifest_bytes
from photon_core.run.paths import Place, PlaceKind
from photon_core.tensors.shards import check_files
from schemas.manifests import FileEntry, ShardRecord, TensorEntry

METHOD = 1  # increase it when the same inputs give other bytes


class ShardRecords:
    """The records of one pass.

    Args:
        one: inputs of the pass.
        shard_bytes: maximum size of its files.
    """

    def __init__(self, one: Pass, shard_bytes: int) -> None:
        assert one.folder is not None
        self._run, self._t, self._folder = one.run, one.t, one.folder
        inputs = {
            "method": METHOD,
            "run": one.run.run,
            "folder": one.folder,
            "base": sha256_bytes(manifest_bytes(one.base)),
            "updates": {name: sha256_bytes(manifest_bytes(source.update)) for name, source in one.sources.items()},
            "server": one.server.model_dump(mode="json"),
            "rules": one.rules.record(),
            "lr_scale": one.lr_scale,
            "look": one.look,
            "shard_bytes": shard_bytes,
        }
        self.inputs = sha256_bytes(canonical_json(inputs))

    def find(self, number: int, parts: Sequence[Mapping[str, TensorEntry]], count: int) -> ShardRecord | None:
        """The record of a shard, if there is one and its files are undamaged.

        Args:
            number: number of the shard.
            parts: expected tensors of each file.
            count: number of its sums.
        """
        try:
            record = self._run.load(ShardRecord, self._place(number))
            if record is None or (record.inputs, record.number, len(record.sums)) != (self.inputs, number, count):
                return None
            if [entry.tensors for entry in record.files] != [dict(part) for part in parts]:
                return None
            check_files(record.files, len(record.files))
            for entry in record.files:
                self._run.store.check(entry, self._folder)
        except (StoreUnavailable, StoreRefused):
            raise
        except (FileNotFoundError, PhotonError):  # any process may have written it: it is no record of this pass
            return None
        return record

    def keep(self, number: int, files: Sequence[FileEntry], sums: Sequence[float]) -> None:
        """Write a record. A record that another coordinator has written is kept."""
        record = ShardRecord(inputs=self.inputs, number=number, files=list(files), sums=list(sums))
        try:
            self._run.commit_manifest(self._place(number), record)
        except StoreConflict:
            pass

    def _place(self, number: int) -> Place:
        return Place(PlaceKind.FINISHED, self._run.run, self._t, work=self.inputs[:32], number=number + 1)
