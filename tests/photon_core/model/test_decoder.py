"""The decoder: causal, equal to a plain reading of the formulas, and its loss."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from photon_core.model.decoder import PhotonModel, initial_decoder, load_decoder, next_token_loss
from schemas.sections.model import Model

MODEL = Model(n_layers=2, d_model=24, n_heads=3, vocab_size=31, max_seq_len=10)


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight + bias


def plain_forward(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The published architecture in float64, written out head by head."""
    p = {name: value.double() for name, value in state.items()}
    length = tokens.shape[1]
    x = p["wte.weight"][tokens] + p["wpe.weight"][:length]
    hidden = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)
    for i in range(MODEL.n_layers):
        b = f"blocks.{i}."
        h = plain_norm(x, p[b + "norm_1.weight"], p[b + "norm_1.bias"])
        q, k, v = (h @ p[b + "attn.Wqkv.weight"].T + p[b + "attn.Wqkv.bias"]).split(MODEL.d_model, -1)
        size = MODEL.d_model // MODEL.n_heads
        heads = []
        for j in range(0, MODEL.d_model, size):
            scores = q[..., j : j + size] @ k[..., j : j + size].transpose(1, 2) / math.sqrt(size) + hidden
            heads.append(scores.softmax(-1) @ v[..., j : j + size])
        x = x + torch.cat(heads, -1) @ p[b + "attn.out_proj.weight"].T + p[b + "attn.out_proj.bias"]
        h = plain_norm(x, p[b + "norm_2.weight"], p[b + "norm_2.bias"])
        h = h @ p[b + "ffn.up_proj.weight"].T + p[b + "ffn.up_proj.bias"]
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ p[b + "ffn.down_proj.weight"].T + p[b + "ffn.down_proj.bias"]
    return plain_norm(x, p["norm_f.weight"], p["norm_f.bias"]) @ p["wte.weight"].T


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, MODEL.vocab_size, (4, 10), generator=torch.Generator().manual_seed(1))


def test_equals_the_formulas(tokens: Tensor) -> None:
    decoder = initial_decoder(MODEL, 3)
    with torch.no_grad():
        for parameter in decoder.parameters():  # biases and norms too must count
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.05)
        got = decoder(tokens)
    assert torch.allclose(got.double(), plain_forward(decoder.state_dict(), tokens), atol=2e-5)


def test_no_position_sees_the_future(tokens: Tensor) -> None:
    decoder = initial_decoder(MODEL, 3)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % MODEL.vocab_size
    with torch.no_grad():
        before, after = decoder(tokens), decoder(changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not torch.allclose(before[:, 6], after[:, 6], atol=1e-3)


def test_loss_predicts_the_next_token(tokens: Tensor) -> None:
    model = PhotonModel(initial_decoder(MODEL, 3))
    batch: dict[str, Any] = {"tokens": tokens, "id": torch.arange(4)}
    logits = model.decoder(tokens)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, MODEL.vocab_size), tokens[:, 1:].reshape(-1)
    )
    assert torch.allclose(model.loss(model(batch), batch), expected)
    certain = torch.nn.functional.one_hot(tokens.roll(-1, 1), MODEL.vocab_size) * 100.0
    assert next_token_loss(certain, tokens) < 1e-6


def test_embedding_is_tied_and_parameters_are_copied() -> None:
    decoder = initial_decoder(MODEL, 3)
    assert not any("head" in name for name, _ in decoder.named_parameters())
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    other = load_decoder(MODEL, state)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert state["wte.weight"].abs().sum() > 0
