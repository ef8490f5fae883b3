"""A site's moments, sent to the server and back, in files of any size."""

from pathlib import Path

import pytest
import torch

from photon_core.model.shapes import moment_shapes, parameter_shapes
from photon_core.tensors.shards import all_tensors
from photon_core.training.exchange import read_moments, write_moments
from photon_core.training.state.folder import UPDATE
from schemas.sections.local import Optimizer
from schemas.sections.model import Model

MODEL = Model(n_layers=1, d_model=16, n_heads=2, vocab_size=64, max_seq_len=8)


@pytest.mark.parametrize("shard_bytes", [1 << 10, 3000, 1 << 30])
def test_files_of_any_size_hold_them_all(tmp_path: Path, shard_bytes: int) -> None:
    """A tensor that is larger than a file is split by rows: an embedding's moments of 1.3 B parameters are."""
    shapes = parameter_shapes(MODEL)
    names = list(shapes)
    state = {
        number: {"step": torch.tensor(7.0), "exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)}
        for number, shape in enumerate(shapes.values())
    }
    (tmp_path / UPDATE).mkdir()
    entries = write_moments(state, names, tmp_path, shard_bytes)
    found = all_tensors(entries)
    assert {name: entry.shape for name, entry in found.items()} == moment_shapes(MODEL, "adamw")
    split = [entry for entry in entries if any(part.rows for part in entry.tensors.values())]
    assert bool(split) == (shard_bytes < 64 * 16 * 4)
    assert all(entry.bytes == (tmp_path / entry.path).stat().st_size for entry in entries)

    files = [str(tmp_path / entry.path) for entry in entries]
    back = read_moments(files, names, MODEL, Optimizer(), step=9)
    for number, moments in state.items():
        assert back[number]["step"] == 9
        assert all(torch.equal(back[number][kind], moments[kind]) for kind in ("exp_avg", "exp_avg_sq"))
