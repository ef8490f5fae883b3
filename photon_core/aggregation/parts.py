"""Parts of a model with key layers: its backbone and each of its layers. A pass reads and writes one of them.

Every file of such a model holds tensors of one part alone.
"""

from collections.abc import Collection, Sequence

from photon_core.aggregation.blame import blame
from photon_core.errors import CorruptFile, UpdateRejected
from photon_core.tensors.shards import all_tensors, check_files
from photon_core.update.codecs.lossless import Plain
from schemas.manifests import FileEntry, RoundManifest, UpdateManifest


def backbone(manifest: RoundManifest) -> RoundManifest:
    """The manifest with the backbone's files alone; as it is where there are no key layers."""
    if not manifest.key_layers:
        return manifest
    layers = {name for names in manifest.key_layers.values() for name in names}
    return manifest.model_copy(
        update={"model": holding(manifest.model, all_tensors(manifest.model).keys() - layers)}
    )


def key_layer(manifest: RoundManifest, layer: str) -> RoundManifest:
    """The manifest with the files of one key layer alone."""
    return manifest.model_copy(update={"model": holding(manifest.model, manifest.key_layers[layer])})


def of_layer(update: UpdateManifest, names: Collection[str]) -> UpdateManifest:
    """The update as one of a key layer alone, whose values it brings as they are.

    Args:
        update: checked by `check_key_layers`.
        names: parameters of the layer.
    """
    changed = {"files": holding(update.key_layers, names), "codec": Plain.name, "base_dtype": "F32"}
    return update.model_copy(update=changed)


def holding(files: Sequence[FileEntry], names: Collection[str]) -> list[FileEntry]:
    """The files that hold these tensors.

    Raises:
        CorruptFile: one of them holds another tensor, too.
    """
    found = [entry for entry in files if not entry.tensors.keys().isdisjoint(names)]
    for entry in found:
        if others := entry.tensors.keys() - set(names):
            raise CorruptFile(f"file '{entry.path[:200]}' also holds tensor '{min(others)[:200]}' of another part")
    return found


def check_key_layers(site: str, base: RoundManifest, update: UpdateManifest) -> None:
    """Refuse key layers that are not those of the model, before any of their bytes are read.

    Raises:
        UpdateRejected: naming the site and the tensor.
    """
    model = all_tensors(base.model)
    expected = {name: model[name] for names in base.key_layers.values() for name in names}
    with blame(site):
        found = all_tensors(update.key_layers)
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                what = "is missing" if name not in found else "is not one of the model's key layers as float32"
                raise UpdateRejected(site, f"key layer: tensor '{name[:200]}' {what}")
        for names in base.key_layers.values():
            holding(update.key_layers, names)
        if update.key_layers:
            check_files(update.key_layers, 2 * len(expected))
