"""Parts of a model with key layers: the backbone, and each key layer. A pass reads and writes one part."""

from collections.abc import Mapping

from photon_core.aggregation.blame import blame
from photon_core.errors import UpdateRejected
from photon_core.model.key_layers import parted
from photon_core.tensors.shards import all_tensors, check_files
from photon_core.update.codecs.lossless import Plain
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.sections.values import NAME

MOST_NAMES = 32  # in the path of a residual's origin, which becomes the name of a row at another member


def backbone(manifest: RoundManifest) -> RoundManifest:
    """The manifest with the backbone's files alone; unchanged if there are no key layers."""
    if not manifest.key_layers:
        return manifest
    return manifest.model_copy(update={"model": parted(manifest.model, manifest.key_layers).backbone})


def key_layer(manifest: RoundManifest, layer: str) -> RoundManifest:
    """The manifest with the files of one key layer alone."""
    return manifest.model_copy(update={"model": parted(manifest.model, manifest.key_layers).layers[layer]})


def key_files(manifest: RoundManifest) -> list[FileEntry]:
    """The files of all key layers, ordered by layer."""
    return [file for files in parted(manifest.model, manifest.key_layers).layers.values() for file in files]


def of_layer(update: UpdateManifest, base: RoundManifest, layer: str) -> UpdateManifest:
    """The update as an update of one key layer, whose values it holds whole.

    Args:
        update: update that `check_key_layers` accepted.
        base: manifest that names the layers' parameters.
        layer: name of the layer.
    """
    files = parted(update.key_layers, base.key_layers).layers[layer]
    return update.model_copy(update={"files": files, "codec": Plain.name, "base_dtype": "F32"})


def check_key_layers(site: str, base: RoundManifest, update: UpdateManifest) -> None:
    """Refuse key layers that do not match the model, before any of their bytes are read.

    Raises:
        UpdateRejected: a tensor does not match; the message names the site and the tensor.
    """
    model = all_tensors(base.model)
    expected = {name: model[name] for names in base.key_layers.values() for name in names}
    with blame(site):
        found = all_tensors(update.key_layers)
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                what = "is missing" if name not in found else "is not one of the model's key layers as float32"
                raise UpdateRejected(site, f"key layer: tensor '{name[:200]}' {what}")
        parted(update.key_layers, base.key_layers)
        if update.key_layers:
            check_files(update.key_layers, 2 * len(expected))
        _check_residuals(site, base, update, model)


def _check_residuals(
    site: str, base: RoundManifest, update: UpdateManifest, model: Mapping[str, TensorEntry]
) -> None:
    """Refuse residuals that are not key layers of the model, or several of one layer."""
    layers = [residual.layer for residual in update.residuals]
    if len(set(layers)) < len(layers):
        raise UpdateRejected(site, "it hands up several residuals of one key layer")
    for residual in update.residuals:
        expected = {name: model[name] for name in base.key_layers.get(residual.layer, [])}
        if not expected or all_tensors(residual.files) != expected:
            raise UpdateRejected(site, f"residual '{residual.layer[:200]}' is not one of the model's key layers")
        if not 0 < len(residual.origin) <= MOST_NAMES or not all(map(NAME.fullmatch, residual.origin)):
            raise UpdateRejected(site, f"the origin of residual '{residual.layer}' is not a path of names")
        check_files(residual.files, 2 * len(expected))
