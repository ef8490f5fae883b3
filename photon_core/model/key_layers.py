"""Key layers: parameters that each node of a tree keeps as its own and learns by attention. The rest is backbone.

Source: Iacob et al. 2024, arXiv 2405.14446. That they are the last blocks, whole, and that token embedding (the
tied head), positions and final norm belong to the backbone, are choices of this project.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from photon_core.errors import CorruptFile, FederationError
from photon_core.model.shapes import parameter_shapes
from schemas.federation import Federation
from schemas.manifests import FileEntry
from schemas.sections.model import Model
from schemas.sections.worldlm import WorldLM

BLOCK = "blocks."


def key_layers(federation: Federation) -> dict[str, list[str]]:
    """Name of each key layer -> its parameters, both sorted; empty for a federation without key layers.

    Raises:
        FederationError: worldlm.key_layers names more blocks than the model has, or a parameter that it has not.
    """
    worldlm = federation.worldlm
    return {} if worldlm is None else grouped(key_parameters(federation.model, worldlm))


def key_parameters(model: Model, worldlm: WorldLM) -> list[str]:
    """Names of all parameters of the key layers."""
    names, asked = list(parameter_shapes(model)), worldlm.key_layers
    if isinstance(asked, list):
        chosen = [name for name in names if any(_is_below(name, one) for one in asked)]
        if wrong := [one for one in asked if not any(_is_below(name, one) for name in names)]:
            raise FederationError(
                f"worldlm.key_layers: the model has no parameter '{wrong[0]}'; write names such as "
                f"'{BLOCK}{model.n_layers - 1}' or '{names[0]}', or a number of blocks"
            )
        return chosen
    count = asked if isinstance(asked, int) else max(1, int(asked * model.n_layers + 0.5))
    if count > model.n_layers:
        raise FederationError(
            f"worldlm.key_layers: {count} blocks, but the model has {model.n_layers}; write at most that"
        )
    last = {f"{BLOCK}{layer}" for layer in range(model.n_layers - count, model.n_layers)}
    return [name for name in names if layer_of(name) in last]


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Key layer -> its parameters, both sorted. A block is one layer; any other parameter is a layer by itself."""
    layers: dict[str, list[str]] = {}
    for name in sorted(names):
        layers.setdefault(layer_of(name), []).append(name)
    return dict(sorted(layers.items()))


def layer_of(name: str) -> str:
    """The block of a parameter; the parameter itself if it is in no block."""
    return ".".join(name.split(".")[:2]) if name.startswith(BLOCK) else name


def names_in(layers: Mapping[str, list[str]]) -> set[str]:
    """Names of the key layers' parameters."""
    return {name for names in layers.values() for name in names}


def without(shapes: Mapping[str, object], layers: Mapping[str, list[str]]) -> set[str]:
    """Names of the backbone's parameters."""
    return set(shapes) - names_in(layers)


def files_of_groups(layers: Mapping[str, list[str]], names: Iterable[str]) -> dict[str, list[str]]:
    """Start of the files' names -> the parameters that they hold: the backbone's, if there are any, then each key
    layer's."""
    backbone = sorted(without(dict.fromkeys(names), layers))
    return ({"": backbone} if backbone else {}) | {f"{layer}-": own for layer, own in layers.items()}


class Parted(NamedTuple):
    """A model's files: the backbone's, and those of each key layer, both in the model's order."""

    backbone: list[FileEntry]
    layers: dict[str, list[FileEntry]]


def parted(files: Iterable[FileEntry], layers: Mapping[str, list[str]]) -> Parted:
    """Which of a model's files hold the backbone, and which a key layer.

    Raises:
        CorruptFile: a file holds parts of two of them, or a key layer has none.
    """
    owner = {name: layer for layer, names in layers.items() for name in names}
    found: dict[str, list[FileEntry]] = {"": [], **{layer: [] for layer in layers}}
    for file in files:
        owners = {owner.get(name, "") for name in file.tensors}
        if len(owners) > 1:
            raise CorruptFile(f"file '{file.path[:200]}' holds parts of a key layer and of something else")
        found[owners.pop() if owners else ""].append(file)
    if empty := [layer for layer in layers if not found[layer]]:
        raise CorruptFile(f"no file holds key layer '{empty[0]}'")
    return Parted(found.pop(""), found)


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
