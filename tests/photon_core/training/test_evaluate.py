"""Evaluation: the mean loss over the held-out sequences, computed another way."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from photon_core.aggregation.guard import jumps, loss_trouble
from photon_core.data.held_out import valid_sequences
from photon_core.evidence.metrics import LARGEST_LOSS, find
from photon_core.hashing import canonical_json
from photon_core.model.decoder import Decoder, initial_decoder, next_token_loss
from photon_core.model.init import initial_model, initial_tensor
from photon_core.model.shapes import parameter_shapes
from photon_core.training.evaluate import evaluate, evaluate_each
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from schemas.federation import Federation
from schemas.sections.server import Guard
from schemas.view import view_of
from tests.photon_core.training.test_train import apply, make_job, silent, theta_zero


def test_loss_is_the_mean_over_all_predicted_tokens(make_site: Callable[..., Federation], tmp_path: Path) -> None:
    federation = make_site(batch_size=3)  # does not divide the 8 sequences
    files = [str(path) for path in initial_model(federation, tmp_path)]
    scores = evaluate(view_of(federation, "alpha"), files, 1)
    sequences = torch.from_numpy(valid_sequences(view_of(federation, "alpha"), 8))
    with torch.no_grad():
        chances = initial_decoder(federation.model, federation.seed)(sequences)[:, :-1].log_softmax(-1)
    expected = -chances.gather(-1, sequences[:, 1:, None]).mean().item()
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert scores["tokens"] == 8 * 15
    assert evaluate(view_of(federation, "alpha"), files, 1) == scores


def test_several_models_are_compared_on_at_most_32_sequences(
    make_site: Callable[..., Federation], tmp_path: Path
) -> None:
    federation = make_site(batch_size=3)
    data = federation.data.model_copy(update={"evaluation_sequences": 64})
    many = view_of(federation.model_copy(update={"data": data}), "alpha")
    files = [str(path) for path in initial_model(federation, tmp_path)]
    assert [scores["tokens"] for scores in evaluate_each(many, [files], 1)] == [
        min(32, len(valid_sequences(many, 64))) * 15
    ]
    few = view_of(federation, "alpha")
    assert evaluate_each(few, [files, files], 1) == [evaluate(few, files, 1)] * 2


def test_every_streams_own_loss(make_site: Callable[..., Federation], tmp_path: Path) -> None:
    federation = make_site(streams=("news", "code"), batch_size=3)
    files = [str(path) for path in initial_model(federation, tmp_path)]
    scores = evaluate(view_of(federation, "alpha"), files, 1)
    assert scores["tokens/news"] == scores["tokens/code"] == 4 * 15
    assert (scores["loss/news"] + scores["loss/code"]) / 2 == pytest.approx(scores["loss"], rel=1e-6)
    sequences = torch.from_numpy(valid_sequences(view_of(federation, "alpha"), 8))[4:]
    decoder = initial_decoder(federation.model, federation.seed)
    with torch.no_grad():
        assert scores["loss/code"] == pytest.approx(
            next_token_loss(decoder(sequences), sequences).item(), rel=1e-5
        )


def test_no_more_goes_through_the_model_at_once_than_in_training(
    make_site: Callable[..., Federation], tmp_path: Path
) -> None:
    """A training that fits its device must not run out of memory in the evaluation behind it."""
    evaluated: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if isinstance(module, Decoder) and not module.training:
            evaluated.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        for t, (micro_batch, first, then) in enumerate(((3, 3, 3), (None, 4, 4), ("auto", 1, 4)), 1):
            federation = make_site(micro_batch=micro_batch, steps=1, schedule={})
            files = [str(path) for path in initial_model(federation, tmp_path)]
            for attempt, expected in enumerate((first, then)):  # auto is found in training
                evaluated.clear()
                scores = evaluate(view_of(federation, "alpha"), files, 1)
                assert max(evaluated) == expected, micro_batch
                evaluated.clear()
                train(LocalJob(view_of(federation, "alpha"), t, attempt, files, "0", 0), lambda _: None)
                assert max(evaluated) == then, micro_batch
            assert scores["tokens"] == 8 * 15
    finally:
        hook.remove()


def test_the_sites_own_model_is_evaluated_before_it_is_averaged(
    make_site: Callable[..., Federation], tmp_path: Path
) -> None:
    federation = make_site(streams=("news", "code"))
    theta = theta_zero(federation)
    trained = train(make_job(federation, theta, tmp_path), silent)
    save_file(apply(theta, trained), tmp_path / "end.safetensors")
    scores = evaluate(view_of(federation, "alpha"), [str(tmp_path / "end.safetensors")], 1)
    assert all(find(name, "evaluation") for name in scores)
    told = {name[6:]: value for name, value in trained.metrics.items() if name.startswith("valid_")}
    assert told == {name: value for name, value in scores.items() if name != "perplexity"} and "loss/code" in told
    off = make_site(streams=("news", "code"), evaluate=False)
    again = train(make_job(off, theta, tmp_path, attempt=2), silent)
    assert "valid_loss" not in again.metrics and again.files == trained.files


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_a_model_that_has_blown_up_scores_the_largest_loss(
    make_site: Callable[..., Federation], tmp_path: Path, value: float
) -> None:
    federation = make_site(streams=("news", "code"), batch_size=3)
    theta = {k: initial_tensor(k, federation.model, 1) for k in parameter_shapes(federation.model)}
    theta["norm_f.weight"] = theta["norm_f.weight"] * np.float32(value)
    theta["wte.weight"] = theta["wte.weight"] * np.float32(1e10)
    save_file(theta, tmp_path / "theta.safetensors")
    scores = evaluate(view_of(federation, "alpha"), [str(tmp_path / "theta.safetensors")], 1)
    assert scores["loss"] == scores["loss/news"] == scores["loss/code"] == LARGEST_LOSS
    assert scores["perplexity"] == math.exp(LARGEST_LOSS)
    canonical_json(scores)
    found = jumps({"alpha": scores}, [{"alpha": {"loss": 3.0}}], LARGEST_LOSS)
    assert loss_trouble(found, Guard())
