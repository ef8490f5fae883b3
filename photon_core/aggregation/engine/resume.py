"""What an interrupted pass over a round's updates has finished, found again by a pass over the same inputs.

    rounds/<t>/finished/<hash of all inputs>/<number>.json

A record is written when a shard of the new model, and the same shard of the optimizer's state, are durable and
every file that they were made from has proved to be whole. It is taken when its own files prove to be whole.
"""

from collections.abc import Mapping, Sequence

from photon_core.aggregation.engine.inputs import Pass
from photon_core.errors import PhotonError, StoreConflict, StoreRefused, StoreUnavailable
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.objects import manifest_bytes
from photon_core.run.paths import Place, PlaceKind
from photon_core.tensors.shards import check_files
from schemas.manifests import FileEntry, ShardRecord, TensorEntry

METHOD = 1  # raise it when the same inputs give other bytes


class ShardRecords:
    """The records of one pass.

    Args:
        one: the pass.
        shard_bytes: size of its files.
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
        """The record of a shard, if there is one and its files are whole.

        Args:
            number: of the shard.
            parts: what each of its files has to hold.
            count: of its sums.
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
        except (FileNotFoundError, PhotonError):  # whoever wrote it, it is no record of this pass
            return None
        return record

    def keep(self, number: int, files: Sequence[FileEntry], sums: Sequence[float]) -> None:
        """Write a record; one that is there already, of another coordinator, stands."""
        record = ShardRecord(inputs=self.inputs, number=number, files=list(files), sums=list(sums))
        try:
            self._run.commit_manifest(self._place(number), record)
        except StoreConflict:
            pass

    def _place(self, number: int) -> Place:
        return Place(PlaceKind.FINISHED, self._run.run, self._t, work=self.inputs[:32], number=number + 1)
