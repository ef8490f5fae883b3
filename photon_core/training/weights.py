"""Parameters between safetensors files and torch: theta in, the encoded update out. Child processes only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from photon_core.errors import CorruptFile
from photon_core.tensors import file_entry, shard_plan
from photon_core.training.shapes import parameter_shapes
from photon_core.training.state import UPDATE
from photon_core.update.post_process import PostProcess
from schemas.manifests import FileEntry, TensorEntry
from schemas.model import Model
from schemas.update import Update


@dataclass(frozen=True)
class Written:
    """An update on the site's disk.

    Args:
        files: its shards, paths relative to the folder that `write_update` was given.
        codec: how they are encoded.
        metrics: delta_norm and, with clipping, unclipped_norm.
        feedback: what the codec has lost, for the site's next update.
    """

    files: list[FileEntry]
    codec: str
    metrics: dict[str, float]
    feedback: dict[str, torch.Tensor]


class Theta:
    """The global model's tensors, or others of these shapes, read one at a time from local safetensors files.

    Raises:
        CorruptFile: a file cannot be read, or names, shapes or types are not those of the federation's model.
    """

    def __init__(self, files: list[str], model: Model, shapes: dict[str, tuple[int, ...]] | None = None) -> None:
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
        rounded = {dtype for dtype, _ in found.values()} == {"BF16"}  # as update.model_dtype has it sent
        self._dtype = "BF16" if rounded else "F32"
        expected = {name: (self._dtype, shape) for name, shape in (shapes or parameter_shapes(model)).items()}
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
        """A tensor as float32."""
        if self._dtype == "BF16":
            with safe_open(self._places[name], framework="pt") as opened:
                return opened.get_tensor(name).float().numpy()
        with safe_open(self._places[name], framework="numpy") as opened:
            return opened.get_tensor(name)


def _describe(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if found is None else f"{found[0]} {list(found[1])}"


def write_update(
    theta: Theta,
    parameters: dict[str, torch.Tensor],
    folder: Path,
    settings: Update,
    feedback: dict[str, torch.Tensor] | None = None,
    noise: np.random.Generator | None = None,
) -> Written:
    """Clip, noise and encode the change of every parameter (PostProcess) into safetensors shards under
    folder/update.

    Args:
        theta: what training started from.
        parameters: what it ended with, on any device.
        folder: holds the new folder `update`; the entries' paths are relative to it.
        settings: the federation file's `update`.
        feedback: what the codec lost of the site's last update.
        noise: generator, where the settings ask for noise.
    """
    lost = {name: value.numpy() for name, value in (feedback or {}).items()}
    process = PostProcess(
        settings, theta.array, lambda name: parameters[name].detach().cpu().numpy(), parameters, lost, noise
    )
    codec = process.codec
    (folder / UPDATE).mkdir()
    layout = {
        name: TensorEntry(dtype=codec.dtype, shape=codec.shape(tuple(value.shape)))
        for name, value in parameters.items()
    }
    shards = shard_plan(layout)
    entries = []
    for number, names in enumerate(shards, 1):
        encoded = {name: torch.from_numpy(_signed(process.encode(name))) for name in names}
        if codec.dtype == "BF16":
            encoded = {name: value.view(torch.bfloat16) for name, value in encoded.items()}
        path = f"{UPDATE}/{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(encoded, folder / path)
        entries.append(file_entry(folder / path, path))
    kept = {name: torch.from_numpy(value) for name, value in process.kept.items()}
    return Written(entries, codec.name, process.metrics(), kept)


def _signed(encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """torch has few unsigned types."""
    return encoded.view(np.int16) if encoded.dtype == np.uint16 else encoded
