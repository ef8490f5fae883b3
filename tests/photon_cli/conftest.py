"""A run in a store, as `photon run` leaves it, without the minutes of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.data.tokenizer import load_tokenizer
from photon_core.run.provenance import federation_sha256
from photon_core.run.run import model_sha256, run_of
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, RunManifest, TensorEntry, UpdateRef
from schemas.reading.load import load_federation

WEIGHTS = TensorEntry(dtype="F32", shape=(1000,))


@pytest.fixture
def committed(write_federation: Callable[..., Path]) -> Callable[..., Path]:
    """(last round, perplexity of the first, as write_federation) -> the file of a run with those rounds."""

    def make(last: int, start: float = 20.0, **sections: Any) -> Path:
        file = write_federation(**sections)
        federation = load_federation(file)
        run = run_of(federation)
        run.create_run(
            RunManifest(
                run=federation.run, created="2026-01-01T00:00:00+00:00",
                federation=federation.model_dump(mode="json"),
                federation_sha256=federation_sha256(federation),
                tokenizer_sha256=load_tokenizer(federation.tokenizer).sha256, versions={},
            )
        )  # fmt: skip
        for t in range(last + 1):
            run.commit_round(round_manifest(federation, t, start, run.round_sha256(t - 1) if t else ""))
        return file

    return make


def round_manifest(federation: Federation, t: int, start: float, previous: str) -> RoundManifest:
    """Of a round of two sites whose files nobody has written."""
    files = [FileEntry(path=f"model/{t}.safetensors", sha256=f"{t:064x}", bytes=4096, tensors={"w": WEIGHTS})]
    names = [site.name for site in federation.sites]
    update = UpdateRef(
        attempt=1, sha256="a" * 64, tokens=100, weight=1 / len(names), bytes=3000, steps=3,
        metrics={"train_loss": 2.0, "seconds": 5.0},
    )  # fmt: skip
    return RoundManifest(
        run=federation.run, round=t, model_sha256=model_sha256(files), model=files, sampled=names if t else [],
        updates=dict.fromkeys(names, update) if t else {}, global_step=3 * t, total_tokens=200 * t,
        metrics={"train_loss": 2.0, "perplexity": start / t} if t else {}, federation_sha256="f" * 64,
        previous_sha256=previous, seconds={"sites": 10.0, "aggregate": 1.0, "evaluate": 1.0} if t else {},
        created="2026-01-01T00:00:00+00:00", versions={},
    )  # fmt: skip
