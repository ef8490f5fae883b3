"""Opening a run: creating run.json and round 0, and checking that a federation file belongs to the run."""

from collections.abc import Callable, Iterable
from math import sqrt
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from photon_core.errors import (
    FederationError,
    StoreConflict,
)
from photon_core.model.key_layers import files_of_groups, key_layers
from photon_core.model.shapes import parameter_shapes
from photon_core.run.birth import check_recipe
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.provenance import federation_sha256, utc_now, versions
from photon_core.run.run import Run, model_sha256
from photon_core.run.start import Initial, check_start
from photon_core.tensors.container import header_length
from photon_core.tensors.local import regroup
from photon_core.tensors.numerics import dots
from photon_core.tensors.shards import put_file
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, RunManifest
from schemas.sections.start import Start
from schemas.sections.worldlm import WorldLM

FROZEN = ("model", "tokenizer", "seed", "start", "key_layers")  # keys that must be the same in all rounds of a run


def check_frozen(first: RunManifest, federation: Federation, tokenizer_sha256: str) -> None:
    """Refuse a federation file whose frozen keys differ from those of the run's start.

    Args:
        first: manifest of the run, with the file that it started with.
        federation: current file.
        tokenizer_sha256: hash of the current file's tokenizer.

    Raises:
        FederationError: a key differs; the message names the key, both values and the remedy.
    """
    now = federation.model_dump(mode="json")
    remedy = f"restore it, or write another name under run: (this run is '{first.run}')"
    for key in FROZEN:
        then = first.federation.get(key, Start().model_dump(mode="json"))  # older runs have no start
        if key not in ("tokenizer", "key_layers") and now[key] != then:
            where, mine, started = _first_difference(key, now[key], then)
            raise FederationError(f"{where} is {mine}, but the run was started with {started}: {remedy}")
    _check_key_layers(first, federation, remedy)
    if first.tokenizer_sha256 != tokenizer_sha256:
        raise FederationError(
            f"tokenizer '{federation.tokenizer}' is not the one that the run was started with: {remedy}"
        )


def _check_key_layers(first: RunManifest, federation: Federation, remedy: str) -> None:
    """Refuse other key layers, however the file selects them: from round 0 on, each has its own files."""
    worldlm = first.federation.get("worldlm")
    born = federation.model_copy(update={"worldlm": worldlm and WorldLM.model_validate(worldlm)})
    now, then = key_layers(federation), key_layers(born)
    if now != then:
        names = [", ".join(layers) or "none" for layers in (now, then)]
        raise FederationError(
            f"worldlm.key_layers gives the key layers {names[0]}, but the run was started with {names[1]}: "
            f"{remedy}"
        )


def _first_difference(key: str, mine: Any, theirs: Any) -> tuple[str, Any, Any]:
    """The first key at which two values of a federation file differ, and both values."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        below = next((k for k in mine if mine[k] != theirs.get(k)), None)
        if below is not None:
            return _first_difference(f"{key}.{below}", mine[below], theirs.get(below))
    return key, mine, theirs


def open_run(
    run: Run, federation: Federation, tokenizer_sha256: str, initial_model: Callable[[], Initial]
) -> RunManifest:
    """Create run.json and round 0 (the initial model) if they are missing, and check that they match the file.

    Many processes may call it at once: the store's commit lets one of them win.

    Raises:
        FederationError: the file is not this run's, or the model to start from is not the file's. In the latter
            case nothing was created.
    """
    first = run.run_manifest()
    if first is None:
        check_start(federation)
        try:
            run.create_run(
                RunManifest(
                    run=federation.run,
                    created=utc_now(),
                    federation=federation.model_dump(mode="json"),
                    federation_sha256=federation_sha256(federation),
                    tokenizer_sha256=tokenizer_sha256,
                    versions=versions(),
                )
            )
        except StoreConflict:
            pass  # another coordinator was first; check_frozen below compares its file
        first = run.run_manifest()
        assert first is not None
    check_frozen(first, federation, tokenizer_sha256)
    check_recipe(first, federation)
    if run.round(0) is None:
        try:
            run.commit_round(_first_round(run, federation, initial_model()))
        except StoreConflict:
            pass  # another process has committed theta^0, from the same origin
    return first


def _first_round(run: Run, federation: Federation, initial: Initial) -> RoundManifest:
    """The manifest of round 0. Uploads its files."""
    layers = key_layers(federation)
    folder = Place(PlaceKind.ROUND_PART, run.run, 0, part="model").path
    paths = _grouped(federation, layers, initial.files) if layers else initial.files
    files = put_files(run, folder, paths, prefix="model/")
    return RoundManifest(
        run=federation.run,
        round=0,
        model_sha256=model_sha256(files),
        model=files,
        key_layers=layers,
        metrics={"model_norm": _norm(initial.files)},
        start=initial.start,
        federation_sha256=federation_sha256(federation),
        created=utc_now(),
        versions=versions(),
    )


def _grouped(federation: Federation, layers: dict[str, list[str]], files: list[Path]) -> list[Path]:
    """Write the model to files that hold the backbone or one key layer, in a new folder beside its files."""
    folder = Path(mkdtemp(prefix="grouped-", dir=files[0].parent))
    groups = files_of_groups(layers, parameter_shapes(federation.model))
    entries = regroup(files, groups, folder, federation.aggregation.shard_bytes)
    return [folder / entry.path for entry in entries]


def _norm(paths: Iterable[Path]) -> float:
    """Euclidean norm of the model in these float32 files: the guard's first running value."""
    squares = 0.0
    for path in paths:
        with path.open("rb") as file:
            header = header_length(file.read(8), path.stat().st_size, str(path))
        values = np.asarray(np.memmap(path, "<f4", "r", 8 + header))
        squares += float(dots(values[None], values[None])[0])
    return sqrt(squares)


def put_files(run: Run, folder: str, paths: Iterable[Path], prefix: str = "") -> list[FileEntry]:
    """Upload local safetensors files under names that hold their hashes, so that no two writers share a name."""
    return [put_file(run.store, path, folder, prefix) for path in paths]
