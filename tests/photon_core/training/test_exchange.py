"""The global model's files as a site reads them: of the federation's names, shapes and types, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from photon_core.errors import CorruptFile
from photon_core.model.shapes import parameter_shapes
from photon_core.training.exchange import Theta
from schemas.sections.model import Model

MODEL = Model(n_layers=1, d_model=8, n_heads=1, vocab_size=64, max_seq_len=4)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32])
def test_a_model_of_another_type_is_refused(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "theta.safetensors"
    save_file({name: np.ones(shape, kind) for name, shape in parameter_shapes(MODEL).items()}, file)
    with pytest.raises(CorruptFile, match=r"but in the federation file's model it is F32 "):
        Theta([str(file)], MODEL)


def test_other_tensors_may_be_of_the_type_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "update.safetensors"
    save_file({name: np.full(shape, 7, np.int32) for name, shape in parameter_shapes(MODEL).items()}, file)
    assert (Theta([str(file)], MODEL, dtype="I32").array("wpe.weight") == 7).all()
