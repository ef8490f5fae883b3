"""theta^0: its distribution, its bytes, and that it depends on seed and shape alone."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from photon_core.model import init
from photon_core.model.init import initial_model, initial_tensor
from photon_core.model.shapes import parameter_shapes
from schemas.sections.model import Model

MODEL = Model(n_layers=4, d_model=128, n_heads=4, vocab_size=257, max_seq_len=128)
GOLDEN = "b81de48bce318c6b801bec0462f51587510bb782add667082b4ad6ba84d1c391"


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("wte.weight", math.sqrt(2 / 128)),
        ("wpe.weight", math.sqrt(2 / 128)),
        ("blocks.1.attn.Wqkv.weight", math.sqrt(2 / 128)),
        ("blocks.1.ffn.up_proj.weight", math.sqrt(2 / 128)),
        ("blocks.1.attn.out_proj.weight", math.sqrt(2 / 128) / math.sqrt(8)),
        ("blocks.1.ffn.down_proj.weight", math.sqrt(2 / 512) / math.sqrt(8)),
    ],
)
def test_deviations_are_mpts(name: str, deviation: float) -> None:
    values = initial_tensor(name, MODEL, 17)
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert abs(values.mean()) < 4 * deviation / math.sqrt(values.size)


def test_biases_are_zero_and_norms_one() -> None:
    for name, shape in parameter_shapes(MODEL).items():
        if len(shape) == 1:
            assert set(initial_tensor(name, MODEL, 17)) == ({0.0} if name.endswith("bias") else {1.0})


def test_golden_bytes() -> None:
    digest = hashlib.sha256()
    for name in sorted(parameter_shapes(MODEL)):
        digest.update(initial_tensor(name, MODEL, 17).tobytes())
    assert digest.hexdigest() == GOLDEN


def test_tensors_differ_from_each_other_and_by_seed() -> None:
    first = initial_tensor("blocks.0.attn.Wqkv.weight", MODEL, 17)
    assert not np.array_equal(first, initial_tensor("blocks.1.attn.Wqkv.weight", MODEL, 17))
    assert not np.array_equal(first, initial_tensor("blocks.0.attn.Wqkv.weight", MODEL, 18))


def test_files_hold_the_tensors_however_they_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.sections.aggregation import Aggregation
    from tests.photon_core.training.conftest import make_federation

    federation = make_federation(tmp_path)
    monkeypatch.setattr(Aggregation, "shard_bytes", 20_000)
    paths = initial_model(federation, tmp_path)
    assert len(paths) > 1
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        for name, value in load_file(path).items():
            parts.setdefault(name, []).append(value)
    assert any(len(found) > 1 for found in parts.values())
    loaded = {name: np.concatenate(found) for name, found in parts.items()}
    assert loaded.keys() == parameter_shapes(federation.model).keys()
    for name, value in loaded.items():
        assert np.array_equal(value, init.initial_tensor(name, federation.model, federation.seed))
