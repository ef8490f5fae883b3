"""The exchange of parameters between safetensors files and torch: theta in, the encoded update out.

Child processes only.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from photon_core.errors import CorruptFile
from photon_core.model.key_layers import without
from photon_core.model.shapes import moment_shapes, parameter_shapes
from photon_core.tensors.container import SENT_AS
from photon_core.tensors.shards import SHARD_BYTES, write_shards
from photon_core.training.state.folder import UPDATE
from photon_core.update.post_process import PostProcess
from schemas.manifests import FileEntry, TensorEntry
from schemas.sections.local import Optimizer
from schemas.sections.model import Model
from schemas.sections.update import Update

State = dict[int, dict[str, Tensor]]
Shapes = Mapping[str, tuple[int, ...]]
Layers = Mapping[str, list[str]]


@dataclass(frozen=True)
class Written:
    """An update on the site's disk.

    Args:
        files: shards of the update; paths are relative to the folder of `write_update`.
        key_layers: shards of the key layers, which are not encoded.
        codec: name of the codec of `files`.
        metrics: norms of the change.
        feedback: residuals of the codec by tensor, for the site's next update.
    """

    files: list[FileEntry]
    key_layers: list[FileEntry]
    codec: str
    metrics: dict[str, float]
    feedback: dict[str, torch.Tensor]


class Theta:
    """The global model's tensors, or others with given shapes, read one at a time from local safetensors files.

    Args:
        files: local paths.
        model: section of the federation file.
        shapes: shapes by tensor; None for the model's.
        dtype: dtype of the tensors, unless all are BF16.

    Raises:
        CorruptFile: a file cannot be read, or names, shapes or dtypes are not those of the federation's model.
    """

    def __init__(
        self,
        files: list[str],
        model: Model,
        shapes: Shapes | None = None,
        dtype: str = "F32",
    ) -> None:
        self._places: dict[str, list[str]] = {}  # files by tensor, in the order of the tensor's rows
        stored: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in files:
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a mapping)
                        part = opened.get_slice(name)
                        kind, shape = part.get_dtype(), tuple(part.get_shape())
                        if name in stored:
                            shape = (stored[name][1][0] + shape[0], *shape[1:])
                        stored[name] = (kind, shape)
                        self._places.setdefault(name, []).append(file)
            except (OSError, SafetensorError) as error:
                raise CorruptFile(f"{file}: not a readable safetensors file: {error}") from error
        rounded = {kind for kind, _ in stored.values()} == {"BF16"}  # sent so because of update.model_dtype
        self._dtype = "BF16" if rounded else dtype
        if shapes is None:
            shapes = parameter_shapes(model)
        expected = {name: (self._dtype, shape) for name, shape in shapes.items()}
        for name in sorted(stored.keys() | expected.keys()):
            if stored.get(name) != expected.get(name):
                raise CorruptFile(
                    f"{', '.join(files)}: tensor '{name}' is {_describe(stored.get(name))}, but in the federation "
                    f"file's model it is {_describe(expected.get(name))}"
                )

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, on the CPU."""
        return {name: torch.from_numpy(self.array(name)) for name in self._places}

    def array(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """A tensor as float32."""
        parts = [self._part(file, name) for file in self._places[name]]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _part(self, file: str, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        if self._dtype == "BF16":
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name).float().numpy()
        with safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)


def _describe(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def post_process(
    theta: Theta,
    parameters: Mapping[str, Tensor],
    settings: Update,
    feedback: dict[str, Tensor] | None = None,
    noise: np.random.Generator | None = None,
) -> PostProcess:
    """The PostProcess of every parameter's change: clip, add noise, encode.

    Args:
        theta: parameters before training.
        parameters: parameters after training, on any device.
        settings: the federation file's `update`.
        feedback: residuals of the site's previous update, by tensor.
        noise: generator, required if the settings have noise.
    """
    lost = {name: value.numpy() for name, value in (feedback or {}).items()}

    def trained(name: str) -> NDArray[np.float32]:
        return parameters[name].detach().cpu().numpy()

    return PostProcess(settings, theta.array, trained, parameters, lost, noise)


def write_update(
    process: PostProcess,
    shapes: Shapes,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    ready: Callable[[FileEntry], None] | None = None,
    layers: Layers | None = None,
) -> Written:
    """Write an update as safetensors shards under folder/update.

    Args:
        process: encoder of each tensor.
        shapes: shapes of the parameters.
        folder: parent of the new folder `update`; the entries' paths are relative to it.
        shard_bytes: maximum size of a file; a larger tensor is split by rows.
        ready: callback for every finished file.
        layers: parameters by key layer, which are written whole.
    """
    (folder / UPDATE).mkdir()

    def write(stem: str, layout: dict[str, TensorEntry], tensor: Callable[[str], NDArray[Any]]) -> list[FileEntry]:
        entries = []
        for entry in write_shards(folder, f"{UPDATE}/{stem}", layout, shard_bytes, tensor):
            entries.append(entry)
            if ready:
                ready(entry)
        return entries

    layers, codec = layers or {}, process.codec
    backbone = without(shapes, layers)
    layout = {name: TensorEntry(dtype=codec.dtype, shape=codec.shape(shapes[name])) for name in backbone}
    files, key_layers = write("", layout, process.encode), list[FileEntry]()
    for layer, names in layers.items():
        layout = {name: TensorEntry(dtype="F32", shape=shapes[name]) for name in names}
        key_layers += write(f"{layer}-", layout, process.whole)
    kept = {name: torch.from_numpy(value) for name, value in process.kept.items()}
    return Written(files, key_layers, codec.name, process.metrics(), kept)


def write_moments(
    state: State, names: list[str], folder: Path, shard_bytes: int = SHARD_BYTES, dtype: str = "float32"
) -> list[FileEntry]:
    """Write an optimizer's moments as shards into folder/update.

    Args:
        state: state by the parameter's number, as in optimizer.state_dict()["state"].
        names: parameter names by number (see optimizer/build.py: parameter_names).
        folder: parent of the folder `update`; the entries' paths are relative to it.
        shard_bytes: maximum size of a file; a larger tensor is split by rows.
        dtype: float32 or bfloat16, which the moments are rounded to.
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
    """Write moments by their names, <moment>.<parameter>, as shards into folder/update.

    Each kind of moment has separate files. So the server that averages them reads all moments of a parameter
    together, and every file once.
    """
    rounded = dtype == "bfloat16"
    layout = {name: TensorEntry(dtype=SENT_AS[dtype], shape=tuple(value.shape)) for name, value in tensors.items()}
    entries: list[FileEntry] = []

    def bits(name: str) -> NDArray[Any]:
        # torch's own rounding keeps values that are not finite, and the server then refuses them by name
        return tensors[name].bfloat16().view(torch.int16).numpy() if rounded else tensors[name].numpy()

    for kind in sorted({name.partition(".")[0] for name in layout}):
        own = {name: tensor for name, tensor in layout.items() if name.partition(".")[0] == kind}
        entries += write_shards(folder, f"{UPDATE}/{kind}-", own, shard_bytes, bits)
    return entries


def read_moments(
    files: list[str], names: list[str], model: Model, optimizer: Optimizer, step: int, apart: Collection[str] = ()
) -> State:
    """The optimizer state with these moments, on the CPU.

    Args:
        files: local paths of verified safetensors files.
        names: parameter names by number.
        model, optimizer: sections of the federation file.
        step: number of steps behind the moments.
        apart: parameters whose moments are not among them.

    Raises:
        CorruptFile: the files cannot be read, or hold other tensors.
    """
    shapes = moment_shapes(model, optimizer.name, apart)
    moments = Theta(files, model, shapes)
    return _state(names, shapes, lambda name: torch.from_numpy(moments.array(name)), step)


def no_moments(names: list[str], model: Model, optimizer: Optimizer) -> State:
    """The optimizer state before the first step, in the same form."""
    shapes = moment_shapes(model, optimizer.name)
    return _state(names, shapes, lambda name: torch.zeros(shapes[name]), 0)


def _state(names: list[str], shapes: Shapes, moment: Callable[[str], Tensor], step: int) -> State:
    state: State = {}
    for number, name in enumerate(names):
        kinds = [kind for kind in ("exp_avg", "exp_avg_sq", "momentum") if f"{kind}.{name}" in shapes]
        if kinds:
            state[number] = {kind: moment(f"{kind}.{name}") for kind in kinds}
        if "exp_avg" in kinds:
            state[number]["step"] = torch.tensor(float(step))
    return state
