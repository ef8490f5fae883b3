"""A run with key layers: from round 0 on its model lies in files that hold the backbone or one key layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile, FederationError
from photon_core.model.init import initial_tensor
from photon_core.model.key_layers import key_layers, parted
from photon_core.run.opening import open_run
from photon_core.run.run import Run, run_of
from photon_core.run.start import Initial, make_initial
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import all_tensors
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, TensorEntry
from tests.federations import sections

MODEL = {"n_layers": 3, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 16}


def opened(folder: Path, **more: Any) -> tuple[Federation, Run, RoundManifest]:
    federation = Federation.model_validate(sections(**{"store": str(folder / "store"), "model": MODEL, **more}))
    scratch = folder / federation.run
    scratch.mkdir(parents=True, exist_ok=True)
    run = run_of(federation)

    def initial() -> Initial:
        return make_initial(federation, scratch)

    open_run(run, federation, load_tokenizer("bytes").sha256, initial)
    base = run.round(0)
    assert base is not None
    return federation, run, base


@pytest.mark.parametrize("shard_mib", [1, 256])
def test_round_0_holds_the_same_model_in_files_of_its_own_for_each_key_layer(
    tmp_path: Path, shard_mib: int
) -> None:
    model = {**MODEL, "d_model": 192} if shard_mib == 1 else MODEL
    federation, run, base = opened(
        tmp_path, worldlm={"key_layers": ["blocks.2", "blocks.1", "norm_f.weight"]}, model=model,
        aggregation={"shard_mib": shard_mib},
    )  # fmt: skip
    assert list(base.key_layers) == ["blocks.1", "blocks.2", "norm_f.weight"] == list(key_layers(federation))
    backbone, layers = parted(base.model, base.key_layers)
    assert base.model == [*backbone, *(file for files in layers.values() for file in files)]
    assert {layer: sorted(all_tensors(files)) for layer, files in layers.items()} == base.key_layers
    assert (len(layers["blocks.1"]) > 1) == (shard_mib == 1)
    for layer, files in layers.items():
        assert all(file.path.startswith(f"model/{layer}-0000") for file in files)
    with TensorReader(run.store, run.round_dir(0), base.model) as reader:
        for name in reader.tensors:
            found = np.concatenate([piece.copy() for piece in reader.chunks(name, 1000)])
            expected = initial_tensor(name, federation.model, federation.seed)
            assert np.array_equal(found, expected.reshape(-1)), name


def test_without_key_layers_the_files_are_as_they_come(tmp_path: Path) -> None:
    plain = opened(tmp_path / "plain")[2]
    none = opened(tmp_path / "none", worldlm={"key_layers": 0})[2]
    assert plain.model == none.model and len(plain.model) == 1
    assert "key_layers" not in plain.model_dump(mode="json") and none.key_layers == {}


def test_another_runs_model_is_grouped_anew(tmp_path: Path) -> None:
    opened(tmp_path, worldlm={"key_layers": 1})
    start = {"run": "r", "round": 0}
    same, other, plain = (
        opened(tmp_path, run=f"next-{number}", start=start, worldlm={"key_layers": number})[2]
        for number in (1, 2, 0)
    )
    first = run_of(Federation.model_validate(sections(store=str(tmp_path / "store")))).round(0)
    assert first is not None and same.model_sha256 == plain.model_sha256 == first.model_sha256
    assert [list(parted(base.model, base.key_layers).layers) for base in (same, other)] == [
        ["blocks.2"],
        ["blocks.1", "blocks.2"],
    ]


def test_every_parameter_may_be_of_a_key_layer(tmp_path: Path) -> None:
    names = ["blocks", "wte", "wpe", "norm_f"]
    _, _, base = opened(tmp_path, worldlm={"key_layers": names})
    backbone, layers = parted(base.model, base.key_layers)
    assert backbone == [] and list(layers) == [
        *("blocks.0", "blocks.1", "blocks.2", "norm_f.bias", "norm_f.weight", "wpe.weight", "wte.weight")
    ]


@pytest.mark.parametrize(("then", "now", "same"), [
    (None, {}, False),
    ({}, None, False),
    ({}, {"key_layers": 2}, False),
    ({}, {"key_layers": 0.3, "temperature": 2}, True),
    ({}, {"key_layers": 1}, True),
])  # fmt: skip
def test_key_layers_stay_those_that_the_run_was_begun_with(
    tmp_path: Path, then: Any, now: Any, same: bool
) -> None:
    opened(tmp_path, worldlm=then)
    if same:
        opened(tmp_path, worldlm=now)
        return
    with pytest.raises(
        FederationError, match=r"worldlm\.key_layers .* but the run was started with .* \(this run is"
    ):
        opened(tmp_path, worldlm=now)


def test_a_file_of_two_groups_is_refused() -> None:
    def file(*names: str) -> FileEntry:
        tensors = {name: TensorEntry(dtype="F32", shape=(1,)) for name in names}
        return FileEntry(path="-".join(names), sha256="0", bytes=4, tensors=tensors)

    layers = {"blocks.1": ["blocks.1.a", "blocks.1.b"]}
    assert parted([file("x"), file("blocks.1.a", "blocks.1.b")], layers).backbone == [file("x")]
    with pytest.raises(
        CorruptFile, match=r"file 'blocks\.1\.a-x' holds parts of a key layer and of something else"
    ):
        parted([file("blocks.1.a", "x")], layers)
    with pytest.raises(CorruptFile, match=r"no file holds key layer 'blocks\.1'"):
        parted([file("x")], layers)
