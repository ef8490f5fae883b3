"""The initial model theta^0, a function of seed and shape alone: every machine makes the same bytes.

The scheme is llm-foundry's default for MPT (`kaiming_normal_`, fan_in, relu): matrices and embeddings normal
with deviation sqrt(2 / fan_in), projections into the residual stream divided by sqrt(2 n_layers), biases 0,
norms 1. NumPy draws the numbers, with a generator for each tensor that is seeded with its name: torch's numbers
depend on the processor's vector width.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photon_core.model.shapes import parameter_shapes
from schemas.federation import Federation
from schemas.manifests import TensorEntry
from schemas.sections.model import Model

RESIDUAL = ("attn.out_proj.weight", "ffn.down_proj.weight")


def initial_tensor(name: str, model: Model, seed: int) -> NDArray[np.float32]:
    """One parameter of theta^0.

    Args:
        name: parameter name, as in `parameter_shapes`.
        model: shape of the model.
        seed: seed of the federation.
    """
    shape = parameter_shapes(model)[name]
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
    deviation = math.sqrt(2 / shape[-1])
    if name.endswith(RESIDUAL):
        deviation /= math.sqrt(2 * model.n_layers)
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    return values


def initial_model(federation: Federation, folder: Path) -> list[Path]:
    """Write theta^0 as safetensors shards into `folder`, with at most one shard in memory at a time."""
    from safetensors.numpy import save_file

    from photon_core.tensors.container import make_metadata
    from photon_core.tensors.shards import shard_plan

    model = federation.model
    layout = {name: TensorEntry(dtype="F32", shape=shape) for name, shape in parameter_shapes(model).items()}
    shards = shard_plan(layout, federation.aggregation.shard_bytes)
    paths = []
    for number, shard in enumerate(shards, 1):
        path = folder / f"{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, part in shard.items():
            tensor = initial_tensor(name, model, federation.seed)
            tensors[name] = tensor if part.rows is None else tensor[slice(*part.rows)]
        metadata = make_metadata(shard)
        save_file(tensors, path, metadata if "rows" in metadata else None)
        paths.append(path)
    return paths
