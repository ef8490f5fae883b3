"""The memory estimate against the literature's numbers and against what torch really keeps."""

import pytest

from photon_core.model.cost import training_memory
from photon_core.model.shapes import parameter_count
from schemas.sections.model import Model


@pytest.mark.parametrize(
    ("preset", "gigabytes"),
    # parameters x 16 bytes (ZeRO, section 3.1), for the parameter counts published with the shapes
    [("125M", 2.0), ("350M", 5.7), ("1.3B", 21.1), ("3B", 42.4), ("7B", 106.5)],
)
def test_states_take_sixteen_bytes_a_parameter(preset: str, gigabytes: float) -> None:
    memory = training_memory(Model.model_validate({"preset": preset}), 1)
    assert (memory.parameters + memory.gradients + memory.optimizer) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_activations_of_the_published_gpt3_shape() -> None:
    """Korthikanti et al. 2022: 34 s b h a block, of which 2 are dropout masks; two norms' inputs 2 bytes wider."""
    model = Model(n_layers=96, d_model=12288, n_heads=96, vocab_size=51200, max_seq_len=2048)
    sbh = 2048 * 12288
    memory = training_memory(model, 1, "amp_bf16")
    assert memory.activations == pytest.approx(96 * sbh * (34 - 2 + 4), rel=0.005)
    assert training_memory(model, 4, "amp_bf16").activations == 4 * memory.activations


def test_shards_divide_the_states_and_nothing_else() -> None:
    model = Model.model_validate({"preset": "7B"})
    one, eight = training_memory(model, 1, "amp_bf16"), training_memory(model, 1, "amp_bf16", shards=8)
    assert eight.parameters == one.parameters // 8 and eight.optimizer == one.optimizer // 8
    assert eight.activations == one.activations and eight.transient == one.transient
    # two blocks and the embeddings, bfloat16 parameters and gradients
    assert eight.copies == pytest.approx(4 * (2 * 12 * 4096**2 + 52_416 * 4096), rel=0.01)
    assert one.total > 80e9 > 30e9 > eight.total, "a 7B model fits 8 devices of 80 GB, not one"


def test_muon_keeps_one_momentum_of_the_hidden_matrices() -> None:
    model = Model.model_validate({"preset": "125M"})
    saved = training_memory(model, 1).optimizer - training_memory(model, 1, optimizer="muon").optimizer
    assert saved == 4 * 12 * 12 * 768**2
    assert training_memory(model, 1).optimizer == 8 * parameter_count(model)


def test_ddp_keeps_a_second_copy_of_the_gradients_and_fedprox_theta() -> None:
    model = Model(n_layers=1, d_model=32, n_heads=2, vocab_size=257, max_seq_len=64)
    count = 257 * 32 + 64 * 32 + (12 * 32**2 + 13 * 32) + 2 * 32  # embeddings; matrices, biases and norms; norm
    assert count == 23_040
    copies = {
        (ddp, proximal): training_memory(model, 1, ddp=ddp, proximal=proximal).copies
        for ddp in (False, True)
        for proximal in (False, True)
    }
    assert copies == {(False, False): 0, (True, False): 92_160, (False, True): 92_160, (True, True): 184_320}


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
def test_activations_are_what_torch_keeps(precision: str) -> None:
    import torch

    from photon_core.model.decoder import initial_decoder, next_token_loss

    model = Model(n_layers=4, d_model=128, n_heads=4, vocab_size=64, max_seq_len=64)
    decoder = initial_decoder(model, 1)
    own = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {tuple(parameter.shape) for parameter in decoder.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and (
            tuple(tensor.shape) in weights or tuple(tensor.T.shape) in weights
        )
        if storage.data_ptr() not in own and not (copy and tensor.ndim == 2):
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, 64, (7, 64), generator=torch.Generator().manual_seed(1))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp_bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = decoder(tokens)
        loss = next_token_loss(logits, tokens)
    assert loss.isfinite()
    log_probabilities = 4 * logits.numel()  # is counted as transient
    measured = sum(storage.nbytes() for storage in kept.values()) - log_probabilities
    estimate = training_memory(model, 7, "fp32" if precision == "fp32" else "amp_bf16").activations
    assert estimate == pytest.approx(measured, rel=0.03)
