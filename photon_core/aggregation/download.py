"""The global model as the sites fetch it: rounded to bfloat16, beside the store's own."""

from collections.abc import Sequence

from photon_core.run.run import Run
from photon_core.tensors.numerics import to_bfloat16
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import FileEntry, TensorEntry

CHUNK_ELEMENTS = 1 << 20


def write_rounded(run: Run, t: int, model: Sequence[FileEntry], max_shard_bytes: int) -> list[FileEntry]:
    """Round t's model, written already, once more under download/, in bounded memory.

    Args:
        run, t: the round.
        model: its files.
        max_shard_bytes: size of the new ones.

    Raises:
        CorruptFile: the model's files are not those that the entries say.
    """
    folder = run.round_dir(t)
    with TensorReader(run.store, folder, model) as reader:
        tensors = {name: TensorEntry(dtype="BF16", shape=tensor.shape) for name, tensor in reader.tensors.items()}
        with ShardWriter(run.store, folder, "download/", tensors, max_shard_bytes) as writer:
            for name in writer.order:
                for values in reader.chunks(name, CHUNK_ELEMENTS):
                    writer.write(name, to_bfloat16(values))
            reader.verify()
            return writer.close()
