"""The inner optimizer's moments between torch and safetensors: averaged over the sites, as the parameters are.

Only tensors travel, as float32 or bfloat16 (update.moments_dtype); the step count behind AdamW's bias correction
is the round's global step, so that a site which joins late does not correct moments that are not its own. Child
processes only.
"""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from photon_core.model.shapes import moment_shapes
from photon_core.tensors.container import SENT_AS, SHARD_BYTES, shard_plan, write_shard
from photon_core.training.exchange import Theta
from photon_core.training.state.folder import UPDATE
from schemas.manifests import FileEntry, TensorEntry
from schemas.sections.local import Optimizer
from schemas.sections.model import Model

State = dict[int, dict[str, Tensor]]


def write_moments(
    state: State, names: list[str], folder: Path, shard_bytes: int = SHARD_BYTES, dtype: str = "float32"
) -> list[FileEntry]:
    """Write an optimizer's moments as shards into folder/update.

    Args:
        state: as in optimizer.state_dict()["state"], by the parameter's number.
        names: the parameters, by number (see optimizers.parameter_names).
        folder: holds the folder `update`; the entries' paths are relative to it.
        shard_bytes: largest file; a larger tensor is split by rows.
        dtype: float32 or bfloat16, which they are rounded to.
    """
    tensors = {
        f"{moment}.{names[number]}": value.detach().float().cpu()
        for number, moments in state.items()
        for moment, value in moments.items()
        if moment != "step"
    }
    return write_tensors(tensors, folder, shard_bytes, dtype)


def write_tensors(
    tensors: dict[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES, dtype: str = "float32"
) -> list[FileEntry]:
    """Write moments by their names, <moment>.<parameter>, as shards into folder/update; each kind in files of its
    own, so that whoever averages them reads a parameter's moments side by side, and every file once."""
    rounded = dtype == "bfloat16"
    layout = {name: TensorEntry(dtype=SENT_AS[dtype], shape=tuple(value.shape)) for name, value in tensors.items()}
    entries = []

    def bits(name: str) -> NDArray[Any]:
        # torch's own rounding: what is not finite stays so, and is refused by name
        return tensors[name].bfloat16().view(torch.int16).numpy() if rounded else tensors[name].numpy()

    for kind in sorted({name.partition(".")[0] for name in layout}):
        own = {name: tensor for name, tensor in layout.items() if name.partition(".")[0] == kind}
        shards = shard_plan(own, shard_bytes)
        for number, shard in enumerate(shards, 1):
            path = f"{UPDATE}/{kind}-{number:05d}-of-{len(shards):05d}.safetensors"
            entries.append(write_shard(folder / path, path, shard, bits))
    return entries


def read_moments(files: list[str], names: list[str], model: Model, optimizer: Optimizer, step: int) -> State:
    """The optimizer state that holds these moments, on the CPU.

    Args:
        files: local safetensors files, verified.
        names: the parameters, by number.
        model, optimizer: of the federation file.
        step: updates that the moments have seen.

    Raises:
        CorruptFile: the files cannot be read, or hold other tensors.
    """
    shapes = moment_shapes(model, optimizer.name)
    found = Theta(files, model, shapes)
    state: State = {}
    for number, name in enumerate(names):
        kinds = [kind for kind in ("exp_avg", "exp_avg_sq", "momentum") if f"{kind}.{name}" in shapes]
        state[number] = {kind: torch.from_numpy(found.array(f"{kind}.{name}")) for kind in kinds}
        if "exp_avg" in kinds:
            state[number]["step"] = torch.tensor(float(step))
    return state
