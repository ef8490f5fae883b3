"""Evaluation: the mean loss over the held-out sequences, computed another way."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from photon_core.data.stream import valid_sequences
from photon_core.training.evaluate import evaluate
from photon_core.training.initial import initial_model
from photon_core.training.model import initial_decoder, next_token_loss
from schemas.federation import Federation


def test_loss_is_the_mean_over_all_predicted_tokens(make_site: Callable[..., Federation], tmp_path: Path) -> None:
    federation = make_site(batch_size=3)  # does not divide the 8 sequences
    files = [str(path) for path in initial_model(federation, tmp_path)]
    scores = evaluate(federation, "alpha", files, 1)
    sequences = torch.from_numpy(valid_sequences(federation, "alpha", 8))
    with torch.no_grad():
        chances = initial_decoder(federation.model, federation.seed)(sequences)[:, :-1].log_softmax(-1)
    expected = -chances.gather(-1, sequences[:, 1:, None]).mean().item()
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert scores["tokens"] == 8 * 15
    assert evaluate(federation, "alpha", files, 1) == scores


def test_every_streams_own_loss(make_site: Callable[..., Federation], tmp_path: Path) -> None:
    federation = make_site(streams=("news", "code"), batch_size=3)
    files = [str(path) for path in initial_model(federation, tmp_path)]
    scores = evaluate(federation, "alpha", files, 1)
    assert scores["tokens/news"] == scores["tokens/code"] == 4 * 15
    assert (scores["loss/news"] + scores["loss/code"]) / 2 == pytest.approx(scores["loss"], rel=1e-6)
    sequences = torch.from_numpy(valid_sequences(federation, "alpha", 8))[4:]
    decoder = initial_decoder(federation.model, federation.seed)
    with torch.no_grad():
        assert scores["loss/code"] == pytest.approx(
            next_token_loss(decoder(sequences), sequences).item(), rel=1e-5
        )
