"""A node's entry: attention over its own, its parent's and residual key layers; local files, read and written."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from photon_core.aggregation import entry
from photon_core.aggregation.entry import Entered, Row, enter_layers
from photon_core.aggregation.means import weighted_mean
from photon_core.errors import CorruptFile
from photon_core.tensors.container import tensors_of
from photon_core.tensors.local import LocalTensors
from photon_core.tensors.shards import all_tensors, write_shards
from schemas.manifests import TensorEntry
from schemas.sections.worldlm import WorldLM

Arrays = dict[str, np.ndarray]
LAYERS = {"blocks.1": ["blocks.1.a", "blocks.1.b"], "norm_f.bias": ["norm_f.bias"]}
SHAPES = {"blocks.1.a": (30, 20), "blocks.1.b": (17,), "norm_f.bias": (5,)}


def arrays(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def row(folder: Path, name: str, values: Arrays, max_bytes: int = 1 << 20) -> Row:
    (folder / name).mkdir(parents=True)
    layout = {key: TensorEntry(dtype="F32", shape=value.shape) for key, value in values.items()}
    paths = [
        folder / name / e.path for e in write_shards(folder / name, "", layout, max_bytes, values.__getitem__)
    ]
    return Row(name, LocalTensors([(path, tensors_of(path)) for path in paths]))


def enter(folder: Path, rows: list[Row], layers: Any = None, max_bytes: int = 1 << 20, **settings: Any) -> Entered:
    layers = layers or LAYERS
    folder.mkdir()
    return enter_layers(dict.fromkeys(layers, rows), layers, WorldLM(**settings), folder, max_bytes)


def read(found: Entered) -> Arrays:
    assert [path for path in found.paths if not path.is_file()] == []
    parts: dict[str, list[np.ndarray]] = {}
    for path in found.paths:
        for name, value in load_file(path).items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


# tau of the formula 1 in units of 1 minus the mean cosine of (0, 1) and (-1, 0) with (1, 0), which is 1.5
@pytest.mark.parametrize(("settings", "a", "y"), [
    ({"attention": "dot", "temperature": 1}, (0.575975, 0.283995, 0.140029), (0.435946, 0.283995)),
    ({"temperature": 1 / 1.5}, (0.665241, 0.244728, 0.090031), (0.575210, 0.244728)),
    ({"temperature": 0.5 / 1.5}, (0.866813, 0.117310, 0.015876), (0.850937, 0.117310)),
    ({"temperature": 0.1 / 1.5}, (0.999955, 0.000045, 0.000000), (0.999955, 0.000045)),
    ({"temperature": 1 / 1.5, "own_row": False}, (0, 0.731059, 0.268941), (-0.268941, 0.731059)),
    ({"attention": "mean"}, (1 / 3, 1 / 3, 1 / 3), (0, 1 / 3)),
    ({"temperature": 0}, (1, 0, 0), (1, 0)),
])  # fmt: skip
def test_golden_values(tmp_path: Path, settings: dict[str, Any], a: Any, y: Any) -> None:
    """Computed from the formula independently (softmax of 1, 0, -1 over the square root of 2 or over tau)."""
    pool = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    rows = [row(tmp_path, f"r{k}", {"w": np.asarray(x, np.float32)}) for k, x in enumerate(pool)]
    found = enter(tmp_path / "out", rows, {"w": ["w"]}, **settings)
    assert found.attention["w"].rows == ["r0", "r1", "r2"]
    assert found.attention["w"].weights == pytest.approx(a, abs=1e-6)
    assert read(found)["w"] == pytest.approx(np.asarray(y), abs=1e-6)


def test_the_bits_are_those_of_the_definition(tmp_path: Path) -> None:
    """Scores from exact sums; the mean as `weighted_mean` of whole rows has it, with the weights as committed."""
    values = [arrays(seed) for seed in (1, 2, 3)]
    rows = [row(tmp_path, f"r{k}", one) for k, one in enumerate(values)]
    found = enter(tmp_path / "out", rows, temperature=0.7)
    for layer, names in LAYERS.items():
        flat = [np.concatenate([one[name].reshape(-1) for name in names]).astype(np.float64) for one in values]
        dots = [math.fsum(flat[0] * x) for x in flat]
        norms = [math.sqrt(math.fsum(x * x)) for x in flat]
        scores = [dot / (norms[0] * norm) for dot, norm in zip(dots, norms, strict=True)]
        attention = found.attention[layer]
        assert attention.scores == pytest.approx(scores, rel=1e-13)
        assert attention.tau == pytest.approx(0.7 * (1 - (scores[1] + scores[2]) / 2), rel=1e-13)
        raised = [math.exp((score - max(scores)) / attention.tau) for score in scores]
        assert attention.weights == [float(np.float32(x / math.fsum(raised))) for x in raised]
        for name in names:
            stacked = np.stack([one[name].reshape(-1) for one in values])
            mean = weighted_mean(stacked, attention.weights, np.empty_like(stacked[0]), np.empty_like(stacked))
            assert read(found)[name].reshape(-1).tobytes() == mean.tobytes()


def test_pieces_and_files_of_any_size_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [arrays(seed) for seed in (1, 2)]
    whole = enter(tmp_path / "out", [row(tmp_path / "a", f"r{k}", one) for k, one in enumerate(values)])
    monkeypatch.setattr("photon_core.aggregation.sums.BLOCK", 64)  # 600 elements: 10 blocks
    few = enter(tmp_path / "few", [row(tmp_path / "b", f"r{k}", one) for k, one in enumerate(values)])
    monkeypatch.setattr(entry, "PIECE", 64)
    cut = [row(tmp_path / "c", f"r{k}", one, 300 + 100 * k) for k, one in enumerate(values)]
    small = enter(tmp_path / "small", cut, max_bytes=500)
    assert few.attention == small.attention
    assert len(small.files) > len(whole.files) == 2
    assert all(read(small)[name].tobytes() == read(few)[name].tobytes() for name in SHAPES)
    assert all_tensors(small.files) == all_tensors(whole.files)
    assert [entry.path for entry in whole.files] == [
        "blocks.1-00001-of-00001.safetensors",
        "norm_f.bias-00001-of-00001.safetensors",
    ]


def test_equal_rows_leave_a_key_layer_as_it_is(tmp_path: Path) -> None:
    values = arrays(1)
    values["norm_f.bias"][:2] = -0.0, 0.0
    for number, settings in enumerate([{}, {"attention": "mean"}, {"own_row": False}, {"temperature": 0}]):
        rows = [row(tmp_path / str(number), name, values) for name in ("own", "parent", "other")]
        found = read(enter(tmp_path / f"out-{number}", rows, **settings))
        assert all(found[name].tobytes() == values[name].tobytes() for name in SHAPES)


def test_each_key_layer_has_a_pool_of_its_own(tmp_path: Path) -> None:
    own, parent, residual = (row(tmp_path, name, arrays(k)) for k, name in enumerate(("own", "parent", "x/3")))
    (tmp_path / "out").mkdir()
    pools = {"blocks.1": [own, parent], "norm_f.bias": [own, parent, residual]}
    found = enter_layers(pools, LAYERS, WorldLM(), tmp_path / "out")
    assert found.attention["blocks.1"].rows == ["own", "parent"]
    assert found.attention["norm_f.bias"].rows == ["own", "parent", "x/3"]
    (tmp_path / "one").mkdir()
    one = enter_layers({"blocks.1": [own, parent]}, LAYERS, WorldLM(), tmp_path / "one")
    assert all_tensors(one.files).keys() == {"blocks.1.a", "blocks.1.b"}


def test_a_mean_lies_between_its_rows(tmp_path: Path) -> None:
    values = [arrays(seed) for seed in range(4)]
    rows = [row(tmp_path, f"r{k}", one) for k, one in enumerate(values)]
    found = read(enter(tmp_path / "out", rows, temperature=3))
    for name in SHAPES:
        stacked = np.stack([one[name] for one in values])
        slack = 4 * np.spacing(np.abs(stacked).max(axis=0))
        assert (found[name] <= stacked.max(axis=0) + slack).all()
        assert (found[name] >= stacked.min(axis=0) - slack).all()


def test_rows_that_cannot_be_attended_are_named(tmp_path: Path) -> None:
    own, broken, other = arrays(1), arrays(2), arrays(3)
    broken["blocks.1.b"][3] = np.inf
    other["blocks.1.b"] = np.ones((18,), np.float32)
    rows = {name: row(tmp_path, name, one) for name, one in {"own": own, "parent": broken, "x": other}.items()}
    with pytest.raises(CorruptFile, match=r"key layer 'blocks\.1' of row 'parent' holds NaN or infinity"):
        enter(tmp_path / "out", [rows["own"], rows["parent"]])
    with pytest.raises(CorruptFile, match=r"tensor 'blocks\.1\.b' of row 'x' is not the model's"):
        enter(tmp_path / "out2", [rows["own"], rows["x"]])


def test_a_row_of_zeros_has_the_cosine_0(tmp_path: Path) -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    found = enter(tmp_path / "out", [row(tmp_path, "own", arrays(1)), row(tmp_path, "parent", zeros)])
    assert found.attention["blocks.1"].scores == [pytest.approx(1.0), 0.0]
