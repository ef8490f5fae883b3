"""Parameter counts of the published shapes, and that the table is what torch builds."""

import pytest

from photon_core.model.shapes import parameter_count, parameter_shapes
from schemas.sections.model import Model


@pytest.mark.parametrize(
    ("preset", "millions", "digits"),
    [("75M", 75.0, 1), ("125M", 125.3, 1), ("350M", 356, 0), ("1.3B", 1316, 0), ("3B", 2652, 0), ("7B", 6659, 0)],
)
def test_published_parameter_counts(preset: str, millions: float, digits: int) -> None:
    from photon_core.model.decoder import empty_decoder

    model = Model.model_validate({"preset": preset})
    assert round(parameter_count(model) / 1e6, digits) == millions
    decoder = empty_decoder(model, "meta")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameter_count(model)


def test_table_is_the_decoders_state() -> None:
    from photon_core.model.decoder import empty_decoder

    model = Model(n_layers=3, d_model=24, n_heads=4, expansion_ratio=2, vocab_size=11, max_seq_len=7)
    state = empty_decoder(model, "meta").state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == parameter_shapes(model)
