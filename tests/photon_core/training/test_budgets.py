"""What a site may do less of, or differently: fewer steps, a time limit, FedProx; and what it then reports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from photon_core.model.decoder import PhotonModel, initial_decoder, losses_by_sample, next_token_loss
from photon_core.model.init import initial_model
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from photon_core.update.codecs.registry import get_codec
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.view import view_of

Make = Callable[..., Federation]
Tensors = dict[str, torch.Tensor]


def at_site(federation: Federation, **keys: Any) -> Federation:
    """The federation with these keys at its first site."""
    values = federation.model_dump(mode="json")
    values["sites"][0] |= keys
    return Federation.model_validate(values)


def run(federation: Federation, folder: Path, attempt: int = 1) -> Trained:
    files = [str(path) for path in initial_model(federation, folder)]
    return train(LocalJob(view_of(federation, "alpha"), 1, attempt, files, "0", 0), lambda _: None)


def end(federation: Federation, trained: Trained) -> dict[str, Any]:
    theta = {name: value.numpy() for name, value in start(federation).items()}
    changes = {}
    for entry in trained.files:
        changes.update(load_file(Path(trained.folder, entry.path)))
    return {name: get_codec(trained.codec).decode(theta[name], changes[name]) for name in theta}


def start(federation: Federation) -> Tensors:
    return {name: p.detach() for name, p in initial_decoder(federation.model, federation.seed).named_parameters()}


def test_fewer_steps_are_the_first_of_the_others(make_site: Make, tmp_path: Path) -> None:
    whole = make_site(schedule={"total_steps": 15})
    fewer = run(at_site(whole, steps=2), tmp_path)
    assert (fewer.steps, fewer.tokens) == (2, 2 * 4 * 16)
    same = make_site(steps=2, schedule={"total_steps": 15})
    assert run(same, tmp_path, attempt=2).files == fewer.files


def test_a_time_limit_ends_training_after_the_step_under_way(make_site: Make, tmp_path: Path) -> None:
    site = make_site(schedule={"total_steps": 15}, checkpoint_steps=1)
    reports: list[dict[str, Any]] = []
    files = [str(path) for path in initial_model(site, tmp_path)]
    job = LocalJob(view_of(at_site(site, time_limit=1e-6), "alpha"), 1, 1, files, "0", 0)
    trained = train(job, reports.append)
    assert (trained.steps, trained.tokens, len(reports)) == (1, 4 * 16, 1), "at least one step"
    assert trained.files == run(at_site(site, steps=1), tmp_path, attempt=2).files
    assert run(at_site(site, time_limit="1h"), tmp_path, attempt=3).steps == 5


def reference(federation: Federation, batches: list[torch.Tensor], mu: float) -> Tensors:
    """FedProx as Li et al. 2020 write it: SGD-free, autograd on F_k(w) + mu/2 |w - theta|^2, clipped, AdamW."""
    local = federation.local
    decoder = initial_decoder(federation.model, federation.seed)
    theta = start(federation)
    section = local.optimizer
    optimizer = torch.optim.AdamW(
        decoder.parameters(), section.lr, section.betas, section.eps, section.weight_decay
    )
    for tokens in batches:
        distance = sum(((p - theta[name]) ** 2).sum() for name, p in decoder.named_parameters())
        (next_token_loss(decoder(tokens), tokens) + mu / 2 * distance).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), local.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in decoder.named_parameters()}


def test_fedprox_equals_its_definition(make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[torch.Tensor] = []
    real = PhotonModel.forward

    def forward(self: PhotonModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batches.append(batch["tokens"].clone())
        return real(self, batch)

    monkeypatch.setattr(PhotonModel, "forward", forward)
    constant = {"name": "constant", "warmup_steps": 0}
    federation = make_site(proximal=50.0, schedule=constant, clip_norm=2.0)
    trained = run(federation, tmp_path)
    found, expected = end(federation, trained), reference(federation, batches, 50.0)
    assert len(batches) == 5
    for name in expected:
        assert np.allclose(found[name], expected[name].numpy(), atol=1e-5), name
    plain = run(make_site(schedule=constant, clip_norm=2.0), tmp_path, attempt=2)
    assert trained.metrics["delta_norm"] < plain.metrics["delta_norm"], "it holds the site near theta"


def test_losses_by_stream_add_up(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(sequences=40, streams=("news", "code"))
    metrics = run(federation, tmp_path).metrics
    counts = [metrics[f"samples/{name}"] for name in ("code", "news")]
    assert sum(counts) == metrics["samples"] == 20 and min(counts) > 0
    mean = sum(metrics[f"loss/{name}"] * metrics[f"samples/{name}"] for name in ("code", "news")) / 20
    assert mean == pytest.approx(metrics["train_loss"], rel=1e-5)
    assert "loss/text" not in run(make_site(), tmp_path, attempt=2).metrics, "one stream's loss is train_loss"


def test_a_batchs_loss_does_not_depend_on_the_samples_being_told_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((5, 12, 33), generator=generator, requires_grad=True)
    tokens = torch.randint(0, 33, (5, 12), generator=generator)
    loss, losses = losses_by_sample(logits, tokens)
    assert torch.equal(loss, next_token_loss(logits, tokens))
    for sample in range(5):
        alone = next_token_loss(logits[sample : sample + 1], tokens[sample : sample + 1])
        assert losses[sample].item() == pytest.approx(alone.item(), rel=1e-6)


def test_norms_and_utilisation(make_site: Make, tmp_path: Path) -> None:
    federation = make_site(steps=1, schedule={"total_steps": 15}, clip_norm=1e-3)
    seen: list[torch.Tensor] = []
    trained = run(at_site(federation, hardware={"tflops": 0.1}), tmp_path)
    torch.manual_seed(0)
    batch = sequences(federation, trained)
    decoder = initial_decoder(federation.model, federation.seed)
    decoder.norm_f.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    loss = next_token_loss(decoder(batch), batch)
    loss.backward()
    norm = torch.stack([(p.grad**2).sum() for p in decoder.parameters() if p.grad is not None]).sum().sqrt()
    assert trained.metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5), "before clipping"
    assert trained.metrics["first_loss"] == pytest.approx(loss.item(), rel=1e-5), "of theta"
    assert trained.metrics["activation_norm"] == pytest.approx(seen[0].norm(dim=-1).mean().item(), rel=1e-5)
    assert 0 < trained.metrics["mfu"] < 1
    assert "mfu" not in run(federation, tmp_path, attempt=2).metrics


def sequences(federation: Federation, trained: Trained) -> torch.Tensor:
    """What was trained on, by the audit trail."""
    from photon_core.data.mds import read_index, read_shard

    shards = read_index(view_of(federation, "alpha").split_dir("text", "train"))
    tokens = np.concatenate([read_shard(shard)[1] for shard in shards])
    numbers = np.fromfile(Path(trained.folder, "samples.u32"), "<u4")
    return torch.from_numpy(tokens[numbers].astype(np.int64))
