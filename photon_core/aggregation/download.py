"""The global model as the sites fetch it: rounded to bfloat16, beside the float32 one."""

from collections.abc import Sequence

from photon_core.run.run import Run
from photon_core.tensors.numerics import to_bfloat16
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import FileEntry, TensorEntry

CHUNK_ELEMENTS = 1 << 20


def write_rounded(run: Run, t: int, model: Sequence[FileEntry], max_shard_bytes: int) -> list[FileEntry]:
    """Write a rounded copy of round t's model under download/, in bounded memory.

    Args:
        run, t: run and round.
        model: entries of the model's files, which are written already.
        max_shard_bytes: maximum size of the new files.

    Raises:
        CorruptFile: the model's files do not match their entries.
    """
    folder = run.round_dir(t)
    with TensorReader(run.store, folder, model) as reader:
        tensors = {name: TensorEntry(dtype="BF16", shape=tensor.shape) for name, tensor in reader.tensors.items()}
        with ShardWriter(run.store, folder, "download/", shard_plan(tensors, max_shard_bytes)) as writer:
            for name in writer.order:
                for values in reader.chunks(name, CHUNK_ELEMENTS):
                    writer.write(name, to_bfloat16(values))
            reader.verify()
            return writer.close()
