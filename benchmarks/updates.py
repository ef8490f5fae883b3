"""Runs whose round 1 can be aggregated: a base model and committed updates of any shape and number."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.model.shapes import parameter_shapes
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs.registry import get_codec
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.sections.model import Model

BLOCK = 1 << 20  # elements after which content repeats; each site has another offset
SMALL = {"n_layers": 4, "d_model": 384, "n_heads": 6, "vocab_size": 8192, "max_seq_len": 512}  # 10 M
RUN = "run"
Shapes = dict[str, tuple[int, ...]]


def shapes_of(size: str) -> Shapes:
    """Shapes of a published size, or of "10M"."""
    return parameter_shapes(Model(**SMALL) if size == "10M" else Model(preset=size))  # type: ignore[arg-type]


def largest(shapes: Shapes, count: int) -> Shapes:
    """The `count` largest tensors."""
    return dict(sorted(shapes.items(), key=lambda item: -int(np.prod(item[1])))[:count])


def bytes_of(shapes: Shapes) -> int:
    """Bytes in float32."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())


def make_run(store: Store, shapes: Shapes, sites: int, codec_name: str, distinct: int) -> None:
    """Commit round 0 and the sites' updates for round 1.

    Args: store: local store. shapes: shapes of the model. sites: number of updates. codec_name: codec of the
    updates. distinct: number of updates with distinct files; files of the others are hard links to them, and each
    update has its own manifest.
    """
    run = Run(store, RUN)
    codec = get_codec(codec_name)
    rng = np.random.default_rng(0)
    floats = (0.02 * rng.standard_normal(2 * BLOCK)).astype(np.float32)
    changes = rng.integers(-2000, 2000, 2 * BLOCK, np.int32)
    plain = {name: TensorEntry(dtype="F32", shape=shape) for name, shape in shapes.items()}
    base = _write(store, run.round_dir(0), "model/", plain, shapes, lambda count: floats[:count])
    commit_base(run, base)
    encoded = {name: TensorEntry(dtype=codec.dtype, shape=codec.shape(shape)) for name, shape in shapes.items()}
    written: list[tuple[str, list[FileEntry]]] = []
    for number in range(sites):
        site = site_name(number)
        folder = run.site_dir(1, site, 1)
        if number < distinct:

            def piece(count: int, at: int = 1000 * number) -> Any:
                if codec.lossless:
                    return changes[at : at + count]
                return codec.encode(floats[at : at + count] * np.float32(1e-3))  # type: ignore[attr-defined]

            files = _write(store, folder, "", encoded, shapes, piece)
            written.append((folder, files))
        else:
            source, files = written[number % distinct]
            root = Path(store.url)
            (root / folder).mkdir(parents=True)
            for entry in files:
                os.link(root / source / entry.path, root / folder / entry.path)
        commit_update(run, site, number, codec_name, files)


def site_name(number: int) -> str:
    return f"site-{number:03d}"


def commit_base(run: Run, files: list[FileEntry]) -> None:
    common: dict[str, Any] = {"run": RUN, "round": 0, "federation_sha256": "", "created": "", "versions": {}}
    run.commit_round(RoundManifest(model=files, model_sha256=model_sha256(files), **common))


def commit_update(run: Run, site: str, number: int, codec: str, files: list[FileEntry]) -> None:
    base = run.round(0)
    assert base is not None
    common: dict[str, Any] = {"run": RUN, "round": 1, "attempt": 1, "steps": 1, "data_sha256": "", "versions": {}}
    run.commit_update(
        UpdateManifest(
            site=site,
            base_sha256=base.model_sha256,
            previous_sha256=run.round_sha256(0),
            codec=codec,
            files=files,
            tokens=1000 + number,
            metrics={"train_loss": 1.0},
            **common,
        )
    )


def _write(
    store: Store, folder: str, stem: str, tensors: dict[str, TensorEntry], shapes: Shapes, content: Any
) -> list[FileEntry]:
    with ShardWriter(store, folder, stem, shard_plan(tensors)) as writer:
        for name in writer.order:
            for count in _counts(int(np.prod(shapes[name]))):
                writer.write(name, content(count).reshape(-1))
        return writer.close()


def _counts(total: int) -> Iterator[int]:
    for start in range(0, total, BLOCK):
        yield min(BLOCK, total - start)
