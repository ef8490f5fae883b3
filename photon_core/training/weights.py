"""Parameters between safetensors files and torch: theta in, the encoded update out. Child processes only."""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from photon_core.errors import CorruptFile
from photon_core.tensors import file_entry, shard_plan
from photon_core.training.shapes import parameter_shapes
from photon_core.training.state import UPDATE
from photon_core.update.codec import get_codec
from schemas.manifests import FileEntry, TensorEntry
from schemas.model import Model


class Theta:
    """The global model's tensors, read one at a time from local safetensors files.

    Raises:
        CorruptFile: a file cannot be read, or names, shapes or types are not those of the federation's model.
    """

    def __init__(self, files: list[str], model: Model) -> None:
        self._places: dict[str, str] = {}
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in files:
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a mapping)
                        part = opened.get_slice(name)
                        found[name] = (part.get_dtype(), tuple(part.get_shape()))
                        self._places[name] = file
            except (OSError, SafetensorError) as error:
                raise CorruptFile(f"{file}: not a readable safetensors file: {error}") from error
        expected = {name: ("F32", shape) for name, shape in parameter_shapes(model).items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise CorruptFile(
                    f"{', '.join(files)}: tensor '{name}' is {_describe(found.get(name))}, but the federation "
                    f"file's model has it {_describe(expected.get(name))}"
                )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, on the CPU."""
        return {name: torch.from_numpy(self.array(name)) for name in self._places}

    def array(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        with safe_open(self._places[name], framework="numpy") as opened:
            return opened.get_tensor(name)


def _describe(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if found is None else f"{found[0]} {list(found[1])}"


def write_update(
    theta: Theta, parameters: dict[str, torch.Tensor], folder: Path, codec_name: str
) -> tuple[list[FileEntry], float]:
    """Encode the change of every parameter into safetensors shards under folder/update.

    Args:
        theta: what training started from.
        parameters: what it ended with, on any device.
        folder: holds the new folder `update`; the entries' paths are relative to it.
        codec_name: of photon_core.update.codec.

    Returns:
        the files, and the Euclidean norm of theta_k - theta.
    """
    codec = get_codec(codec_name)
    (folder / UPDATE).mkdir()
    layout = {name: TensorEntry(dtype=codec.dtype, shape=tuple(value.shape)) for name, value in parameters.items()}
    shards = shard_plan(layout)
    squares = 0.0
    entries = []
    for number, names in enumerate(shards, 1):
        encoded = {}
        for name in names:
            start, end = theta.array(name), parameters[name].detach().cpu().numpy()
            change = (end - start).ravel()
            squares += float(np.dot(change, change))
            encoded[name] = codec.encode(start, end)
        path = f"{UPDATE}/{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(encoded, folder / path)
        entries.append(file_entry(folder / path, path))
    return entries, math.sqrt(squares)
