"""A model as Hugging Face's safetensors files, written tensor by tensor."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.export.source import Source, Tensors
from photon_core.model.gpt2 import gpt2_places
from photon_core.tensors.container import make_header
from photon_core.tensors.reader import span
from schemas.manifests import TensorEntry
from schemas.sections.model import Model

CHUNK = 4 << 20  # elements read at a time


def write_weights(source: Source, model: Model, folder: Path) -> None:
    """Write model.safetensors, or numbered files and their index if the model has several files.

    Every file of the model in which tensors begin becomes one file of the export. So everything is read once,
    front to back, and hashed while read. Memory holds a few chunks, and the largest matrix of a block twice,
    because it is transposed.

    Raises:
        CorruptFile: the files do not match their manifest.
    """
    places = gpt2_places(model)
    begin = [[name for name, part in entry.tensors.items() if span(part)[0] == 0] for entry in source.entries]
    files = [names for names in begin if names]
    count, index = len(files), dict[str, str]()
    with source.open() as found:
        for number, names in enumerate(files, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            tensors = {places[name].name: TensorEntry(dtype="F32", shape=places[name].shape) for name in names}
            with (folder / file).open("wb") as sink:
                sink.write(make_header(tensors))
                for name in names:
                    for part in _parts(found, name, places[name].transposed):
                        sink.write(np.ascontiguousarray(part).data)
            index.update(dict.fromkeys(tensors, file))
    if count > 1:
        total = sum(4 * int(np.prod(place.shape)) for place in places.values())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def _parts(found: Tensors, name: str, transposed: bool) -> Iterator[NDArray[Any]]:
    if transposed:
        yield found.array(name).T
    else:
        yield from found.chunks(name, CHUNK)
