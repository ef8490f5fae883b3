"""Local safetensors files, read in pieces of any place and size, and written again in other groups."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.errors import CorruptFile
from photon_core.hashing import sha256_file
from photon_core.tensors.container import tensors_of
from photon_core.tensors.local import LocalTensors, regroup
from photon_core.tensors.shards import all_tensors, write_shards
from schemas.manifests import TensorEntry

RNG = np.random.default_rng(0)
SHAPES = {"a": (40, 8), "b": (7,), "c": (30, 16)}
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
LAYOUT = {name: TensorEntry(dtype="F32", shape=array.shape) for name, array in ARRAYS.items()}


def files(folder: Path, max_bytes: int) -> list[Path]:
    return [folder / entry.path for entry in write_shards(folder, "", LAYOUT, max_bytes, ARRAYS.__getitem__)]


def opened(paths: list[Path]) -> LocalTensors:
    return LocalTensors([(path, tensors_of(path)) for path in paths])


@pytest.mark.parametrize("max_bytes", [300, 1000, 1 << 20])
def test_pieces_of_any_place_and_size(tmp_path: Path, max_bytes: int) -> None:
    """Also over the end of a file, where a tensor is split by rows."""
    paths = files(tmp_path, max_bytes)
    assert (len(paths) > 3) == (max_bytes < 1 << 20)
    found = opened(paths)
    assert found.tensors == LAYOUT
    for name, array in ARRAYS.items():
        assert np.array_equal(found.array(name), array)
        for start in range(0, array.size, 37):
            out = np.empty(min(101, array.size - start), np.float32)
            found.read(name, start, out)
            assert np.array_equal(out, array.reshape(-1)[start : start + len(out)])


@pytest.mark.parametrize("max_bytes", [300, 1 << 20])
def test_regrouped_files_hold_one_group_each_whatever_they_were(tmp_path: Path, max_bytes: int) -> None:
    groups = {"": ["b"], "c-": ["c"], "other-": ["a"]}
    made: list[list[str]] = []
    for name, paths in {"ours": files(tmp_path, max_bytes), "one": [tmp_path / "one.safetensors"]}.items():
        if name == "one":
            save_file(dict(reversed(ARRAYS.items())), paths[0])
        (tmp_path / name).mkdir()
        entries = regroup(paths, groups, tmp_path / name, 500)
        assert all_tensors(entries) == LAYOUT
        found: dict[str, list[np.ndarray]] = {}
        for entry in entries:
            assert sha256_file(tmp_path / name / entry.path) == entry.sha256
            (stem,) = {stem for stem, names in groups.items() if entry.tensors.keys() <= set(names)}
            assert entry.path.startswith(f"{stem}0000")
            for tensor, values in load_file(tmp_path / name / entry.path).items():
                found.setdefault(tensor, []).append(values)
        assert all(np.array_equal(np.concatenate(found[tensor]), ARRAYS[tensor]) for tensor in ARRAYS)
        made.append([entry.sha256 for entry in entries])
    assert made[0] == made[1], "the same tensors in the same groups are the same files"


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1 << 20)
    with pytest.raises(CorruptFile, match=r"tensor 'b' is F32 \[7\], not F32 \[8\]"):
        LocalTensors([(path, {"b": TensorEntry(dtype="F32", shape=(8,))})])
    with pytest.raises(CorruptFile, match=r"tensor 'd' is absent, not F32 \[8\]"):
        LocalTensors([(path, {"d": TensorEntry(dtype="F32", shape=(8,))})])
    with pytest.raises(CorruptFile, match="nowhere is missing"):
        LocalTensors([(tmp_path / "nowhere", LAYOUT)])
    with pytest.raises(CorruptFile, match="tensor 'a' is in two files"):
        opened([path, path])
    save_file({"a": np.ones((2, 2), np.float64)}, path)
    with pytest.raises(CorruptFile, match="tensor 'a' is F64"):
        opened([path])


def test_a_file_that_has_become_shorter_is_told(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1 << 20)
    found = opened([path])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match="has become shorter than its header says"):
        found.array("c")
