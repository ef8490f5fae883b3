"""A checkpoint to start from: safetensors of Photon or of a Hugging Face GPT-2, checked by its headers first."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import CorruptFile, FederationError
from photon_core.model.gpt2 import EPSILON, PREFIX, gpt2_places
from photon_core.model.shapes import parameter_shapes
from photon_core.store.store import Store
from photon_core.tensors.container import TensorInfo, make_header, read_header, tensor_bytes
from photon_core.tensors.shards import SHARD_BYTES
from schemas.manifests import TensorEntry
from schemas.sections.model import Model

DTYPES = ("F32", "F16", "BF16")
SUFFIX = ".safetensors"
JSON_LIMIT = 8 << 20  # bytes of config.json and of the index
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers beside the parameters in old GPT-2 checkpoints
HEAD = "lm_head.weight"
AGAIN = "save the checkpoint again, or write the path of another"
NEAR_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")


@dataclass(frozen=True)
class Target:
    """The parameter of the model that a checkpoint's tensor becomes."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


class Checkpoint:
    """The tensors of a checkpoint, matched with the model's parameters by the files' headers alone.

    Args:
        place: path or fsspec URL of a .safetensors file, or of a folder of them (with an index and config.json
            where Hugging Face wrote it).
        model: model section of the federation file.
        options: storage options (endpoint_url, ...), for an s3:// place.

    Attributes:
        notes: sentences for the operator.

    Raises:
        FederationError: the checkpoint is not this model's; the message names the tensor and both shapes.
    """

    def __init__(self, place: str, model: Model, options: dict[str, Any]) -> None:
        self.place, self.model, self.notes = place, model, list[str]()
        folder, _, file = place.rstrip("/").rpartition("/") if place.endswith(SUFFIX) else (place, "", "")
        self._store = Store(folder or ".", **(options if place.startswith(("s3://", "s3a://")) else {}))
        try:
            self._files = [(name, self._header(name)) for name in ([file] if file else self._names())]
        except CorruptFile as error:
            raise FederationError(f"start.checkpoint: {error}") from None
        self._targets = self._match([info for _, infos in self._files for info in infos])

    def write(self, folder: Path) -> tuple[list[Path], dict[str, str]]:
        """Write the model as Photon's safetensors shards, in float32, with a few tensors in memory at a time.

        Returns:
            The shards, and the sha256 of every source file by name.

        Raises:
            FederationError: a tensor holds NaN or infinity, or the head is not the embedding.
            CorruptFile: a file ends early.
        """
        plan = self._plan()
        hashes: dict[str, str] = {}
        arrays, paths = self._read(hashes), []
        for number, shard in enumerate(plan, 1):
            path = folder / f"{number:05d}-of-{len(plan):05d}{SUFFIX}"
            with path.open("wb") as sink:
                sink.write(make_header(shard))
                for name in shard:
                    source, array = next(arrays)
                    assert source == name
                    sink.write(np.ascontiguousarray(array).data)
            paths.append(path)
        next(arrays, None)  # bytes after the last tensor belong to its file's hash
        return paths, hashes

    def _names(self) -> list[str]:
        """The folder's safetensors files.

        Raises:
            FederationError: there is none; the message names a pickle if the folder holds only pickles.
        """
        listing = self._store.ls("")
        if "model.safetensors" in listing:
            return ["model.safetensors"]
        if "model.safetensors.index.json" in listing:
            return self._indexed("model.safetensors.index.json")
        names = [name for name in listing if name.endswith(SUFFIX)]
        if not names:
            pickles = [name for name in listing if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
            raise FederationError(
                f"start.checkpoint: there is no {SUFFIX} file in '{self.place}'"
                + (f"; {pickles[0]} is a pickle, which may run code: convert it to safetensors" if pickles else "")
                + ("" if pickles else "; write the path or URL of a safetensors file, or of a folder of them")
            )
        return names

    def _indexed(self, name: str) -> list[str]:
        """The files that Hugging Face's index names."""
        places = self._json(name).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise FederationError(f"start.checkpoint: '{self._store.locate(name)}' has no weight_map; {AGAIN}")
        return sorted(set(places.values()))

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the tensors.

        Raises:
            FileNotFoundError: there is no such file.
            FederationError: the file is not a JSON object.
        """
        try:
            value = json.loads(self._store.read(name, JSON_LIMIT))
        except (ValueError, RecursionError) as error:
            reason = str(error)
        else:
            if isinstance(value, dict):
                return value
            reason = "not an object"
        raise FederationError(f"start.checkpoint: '{self._store.locate(name)}' is not JSON ({reason}); {AGAIN}")

    def _header(self, name: str) -> list[TensorInfo]:
        try:
            return list(read_header(self._store, name, self._store.size(name))[1].values())
        except FileNotFoundError:
            raise FederationError(f"start.checkpoint: there is no file '{self._store.locate(name)}'") from None

    def _match(self, infos: list[TensorInfo]) -> dict[str, Target]:
        """The checkpoint's name -> its target; every parameter of the model occurs once."""
        names = {info.name for info in infos}
        if twice := sorted(name for name, count in Counter(info.name for info in infos).items() if count > 1):
            raise FederationError(
                f"start.checkpoint: the tensor '{twice[0][:200]}' is in two files of '{self.place}'; write the "
                "path of one checkpoint"
            )
        expected = self._expected(names)
        for info in infos:
            if info.name == HEAD or info.name.endswith(MASKS):
                continue
            self._check(info, expected)
        if missing := sorted(expected.keys() - names):
            shape = list(expected[missing[0]].shape)
            raise FederationError(
                f"start.checkpoint: '{self.place}' has no tensor '{missing[0]}', which the file's model has with "
                f"shape {shape} ({len(missing)} missing){self._depths(infos)}; correct the file's model section, "
                "or write another checkpoint"
            )
        return expected

    def _expected(self, names: set[str]) -> dict[str, Target]:
        """The names and shapes that this kind of checkpoint has for the file's model."""
        if any(name.startswith("blocks.") for name in names):
            return {name: Target(name, shape) for name, shape in parameter_shapes(self.model).items()}
        prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
        if f"{prefix}wte.weight" not in names or f"{prefix}wpe.weight" not in names:
            shown = ", ".join(f"'{name[:60]}'" for name in sorted(names)[:3])
            raise FederationError(
                f"start.checkpoint: '{self.place}' holds tensors such as {shown}: it is neither a Photon model "
                "nor a GPT-2; write another checkpoint"
            )
        self._check_config()
        return {
            prefix + place.name.removeprefix(PREFIX): Target(name, place.shape, place.transposed)
            for name, place in gpt2_places(self.model).items()
        }

    def _check(self, info: TensorInfo, expected: dict[str, Target]) -> None:
        if info.name not in expected:
            raise FederationError(
                f"start.checkpoint: '{self.place}' has a tensor '{info.name[:200]}' of shape {list(info.shape)}, "
                "which the file's model lacks; correct the file's model section, or write another checkpoint"
            )
        if info.shape != expected[info.name].shape:
            raise FederationError(
                f"start.checkpoint: tensor '{info.name}' of '{self.place}' has shape {list(info.shape)}, but the "
                f"file's model needs {list(expected[info.name].shape)}; correct the file's model section, or "
                "write another checkpoint"
            )
        if info.dtype not in DTYPES:
            raise FederationError(
                f"start.checkpoint: tensor '{info.name}' of '{self.place}' is {info.dtype}; "
                f"write a checkpoint in one of {', '.join(DTYPES)}"
            )

    def _depths(self, infos: list[TensorInfo]) -> str:
        """The number of blocks of the checkpoint and of the model, for a message."""
        layers = {part for info in infos for part in info.name.split(".") if part.isdecimal()}
        return f"; the checkpoint has {len(layers)} blocks, model.n_layers is {self.model.n_layers}"

    def _check_config(self) -> None:
        """Check what shapes do not show: heads, activation, epsilon. A missing config.json is only a note."""
        try:
            config = self._json("config.json")
        except FileNotFoundError:
            self.notes.append(
                "the checkpoint has no config.json: Photon assumes the model's number of heads and activation"
            )
            return
        settings = {
            "model_type": ("gpt2", "gpt2"),
            "n_head": (self.model.n_heads, 12),
            "layer_norm_epsilon": (EPSILON, 1e-5),
            "tie_word_embeddings": (True, True),
            "scale_attn_weights": (True, True),
            "scale_attn_by_inverse_layer_idx": (False, False),
        }
        for key, (value, default) in settings.items():
            if config.get(key, default) != value:
                raise FederationError(
                    f"start.checkpoint: config.json of '{self.place}' has {key} {config.get(key, default)!r}, but "
                    f"the file's model has {value!r}; correct the file's model section, or write another "
                    "checkpoint"
                )
        activation = config.get("activation_function", "gelu_new")
        if activation in NEAR_GELU:
            self.notes.append(
                f"the checkpoint was trained with {activation}; the model continues with the exact GELU"
            )
        elif activation != "gelu":
            raise FederationError(
                f"start.checkpoint: config.json of '{self.place}' has the activation {activation!r}, but the "
                "model has GELU; write another checkpoint"
            )

    def _plan(self) -> list[dict[str, TensorEntry]]:
        """Photon's shards, in the order of the checkpoint's tensors."""
        plan: list[dict[str, TensorEntry]] = []
        filled = 0
        shapes = parameter_shapes(self.model)
        for name in (self._targets[i.name].name for _, infos in self._files for i in infos if self._is_kept(i)):
            entry = TensorEntry(dtype="F32", shape=shapes[name])
            if not plan or filled + tensor_bytes(entry) > SHARD_BYTES:
                plan.append({})
                filled = 0
            plan[-1][name] = entry
            filled += tensor_bytes(entry)
        return plan

    def _is_kept(self, info: TensorInfo) -> bool:
        return info.name in self._targets

    def _read(self, hashes: dict[str, str]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every tensor of the model, in order. The files' hashes are complete when it ends."""
        tied: dict[str, str] = {}  # hashes of the head and the embedding, which must be equal
        for file, infos in self._files:
            digest = hashlib.sha256()
            with self._store.open_read(file) as source:
                _take(source, infos[0].start if infos else self._store.size(file), digest)
                for info in infos:
                    data = _take(source, info.end - info.start, digest)
                    if info.name == HEAD or info.name.endswith("wte.weight"):
                        tied[info.name] = hashlib.sha256(data).hexdigest()
                    if not self._is_kept(info):
                        continue
                    array = _float32(data, info)
                    if not np.isfinite(array).all():
                        raise FederationError(
                            f"start.checkpoint: tensor '{info.name}' of '{self.place}' holds NaN or infinity; "
                            "write another checkpoint"
                        )
                    target = self._targets[info.name]
                    yield target.name, array.T if target.transposed else array
            hashes[file] = digest.hexdigest()
        if HEAD in tied and len(set(tied.values())) > 1:
            raise FederationError(
                f"start.checkpoint: '{HEAD}' of '{self.place}' differs from its embedding, but the model ties "
                "them; write another checkpoint"
            )


def _take(source: BinaryIO, count: int, digest: Any) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        read = source.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            raise CorruptFile(f"start.checkpoint: a file ends {count - done} bytes early; download it again")
        done += read
    digest.update(data)
    return data


def _float32(data: bytearray, info: TensorInfo) -> NDArray[np.float32]:
    if info.dtype == "BF16":  # the upper half of a float32
        array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        array = np.frombuffer(data, "<f4" if info.dtype == "F32" else "<f2").astype("<f4", copy=False)
    return array.reshape(info.shape)
