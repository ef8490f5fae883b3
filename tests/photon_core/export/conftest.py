"""A run whose rounds hold random models with every bias and norm at work, in two files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.tokenizer import load_tokenizer
from photon_core.model.shapes import parameter_shapes
from photon_core.run.opening import open_run, put_files
from photon_core.run.run import Run, model_sha256, run_of
from photon_core.run.start import Initial
from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateRef

TEXTS = ["plain text", "naïve — 日本語 🙂", "\x00\r\n\t  two  spaces ", "a<|endoftext|>b", ""]


def federation(folder: Path, **sections: Any) -> Federation:
    data = {
        "run": "small",
        "store": str(folder / "store"),
        "tokenizer": "bytes",
        "model": {"n_layers": 2, "d_model": 24, "n_heads": 3, "vocab_size": 263, "max_seq_len": 20},
        "rounds": {"count": 3},
        "local": {"steps": 2, "batch_size": 2},
        "sites": [
            {"name": name, "state_dir": str(folder / name), "streams": [{"name": "web", "source": "web.txt"}]}
            for name in ("north", "south")
        ],
        **sections,
    }
    return Federation.model_validate(data)


def random_model(federation: Federation, folder: Path, seed: int) -> list[Path]:
    """Two files of tensors of deviation 0.2."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in parameter_shapes(federation.model).items()
    }
    names = sorted(tensors)
    paths = []
    for number, part in enumerate((names[:7], names[7:])):
        paths.append(folder / f"{seed}-{number}.safetensors")
        save_file({name: tensors[name] for name in part}, paths[-1])
    return paths


@pytest.fixture
def make_rounds(tmp_path: Path) -> Callable[..., tuple[Federation, Run]]:
    """A federation with rounds 0 and 1 committed; keywords are sections of its file."""

    def make(**sections: Any) -> tuple[Federation, Run]:
        fed = federation(tmp_path, **sections)
        run = run_of(fed)
        tokenizer = load_tokenizer(fed.tokenizer).sha256
        open_run(run, fed, tokenizer, lambda: Initial(random_model(fed, tmp_path, 0)))
        files = put_files(run, f"{run.round_dir(1)}/model", random_model(fed, tmp_path, 1), prefix="model/")
        ref = {"attempt": 1, "sha256": "0", "weight": 0.5, "bytes": 7, "metrics": {"train_loss": 2.0}}
        scores = {"loss": 1.0, "perplexity": 2.71828, "tokens": 1000.0}
        manifest = RoundManifest(
            run=fed.run,
            round=1,
            model_sha256=model_sha256(files),
            model=files,
            sampled=["north", "south"],
            updates={
                "north": UpdateRef(tokens=1234, steps=2, **ref),
                "south": UpdateRef(tokens=6, steps=1, **ref),
            },
            total_tokens=1240,
            metrics={"perplexity": 2.75},
            evaluations={"north": scores, "south": scores},
            federation_sha256="f",
            previous_sha256=run.round_sha256(0),
            created="2026-01-01",
            versions={"photon": "1"},
        )
        run.commit_round(manifest)
        return fed, run

    return make
