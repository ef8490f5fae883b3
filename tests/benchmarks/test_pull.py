"""Ditto's personal models in benchmarks.bare."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import ComposerModel, Trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.pull import Pull


class Free(ComposerModel):
    """Two numbers without a loss."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.decoder = torch.nn.ParameterDict({"v": torch.nn.Parameter(torch.tensor(start))})

    def forward(self, batch: Any) -> torch.Tensor:
        return 0.0 * self.decoder["v"].sum() * batch[0].sum()

    def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return outputs + 0.0 * batch[0].sum()


def test_a_model_without_a_loss_moves_towards_the_model_of_each_round(tmp_path: Path) -> None:
    targets = [[1.0, 0.0], [0.0, 3.0]]
    files = []
    for number, target in enumerate(targets):
        files.append([str(tmp_path / f"{number}.safetensors")])
        save_file({"v": torch.tensor(target)}, files[-1][0])
    model = Free([0.0, 1.0])
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        callbacks=[Pull(model.decoder, strength=0.5, every=2, models=files)],
        max_duration="4ba",
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    expected = [0.0, 1.0]
    for target in (targets[0], targets[0], targets[1], targets[1]):
        expected = [v - 0.5 * 0.5 * (v - w) for v, w in zip(expected, target, strict=True)]
    assert model.decoder["v"].tolist() == pytest.approx(expected)
