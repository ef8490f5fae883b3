"""Records of runs of any size, with the numbers that a run would have: no training."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from photon_core.evidence.record import Record
from schemas.manifests import FileEntry, RoundManifest, RunManifest, Span, TensorEntry, UpdateManifest, UpdateRef

HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }} $\\frac{1}{2}$'
MODEL = FileEntry(
    path="model/1.safetensors",
    sha256="ab" * 32,
    bytes=4096,
    tensors={"w": TensorEntry(dtype="F32", shape=(1000,))},
)
VERSIONS = {"photon": "0.1.0", "torch": "2.7.0"}
CHECK = {"expectation": "expect_column_max_to_be_between", "column": "eot_share", "observed": 0.01,
         "limit": {"max_value": 0.2}, "success": True}  # fmt: skip


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """(rounds, sites) -> the record of such a run; every third round excludes the last site."""

    def make(count: int, sites: int, **changes: Any) -> Record:
        names = [f"site-{i:02d}" for i in range(sites)]
        chance = random.Random(5)
        manifests = [_round(t, names, chance) for t in range(count + 1)]
        updates = {
            site: UpdateManifest(
                run="made", round=count, site=site, attempt=1, base_sha256="b", codec="float32", files=[],
                tokens=1, steps=10, metrics=ref.metrics, data_sha256="cd" * 32, checks=[CHECK],
                previous_sha256="p",
                versions=VERSIONS | ({"torch": "2.6.0"} if site == names[0] else {}),
            )
            for site, ref in manifests[-1].updates.items()
        }  # fmt: skip
        birth = RunManifest(
            run="made", created="2026-01-01T00:00:00", federation=_federation(names), federation_sha256="f" * 64,
            tokenizer_sha256="0" * 64, versions=VERSIONS,
        )  # fmt: skip
        values: dict[str, Any] = {"run": "made", "url": "/store/made", "run_manifest": birth, "rounds": manifests,
                                  "updates": updates, "last_sha256": "e" * 64, "count": count + 1}  # fmt: skip
        return Record(**values | changes)

    return make


def _federation(names: list[str]) -> dict[str, Any]:
    return {
        "run": "made", "model": {"n_layers": 2, "d_model": 32}, "local": {"steps": 10, "batch_size": 4},
        "server": {"optimizer": "fedavg"}, "sites": [{"name": name, "streams": []} for name in names],
    }  # fmt: skip


def _round(t: int, names: list[str], chance: random.Random) -> RoundManifest:
    common: dict[str, Any] = {"run": "made", "round": t, "model_sha256": f"{t:064x}", "model": [MODEL],
                              "federation_sha256": "f" * 64, "versions": VERSIONS}  # fmt: skip
    if not t:
        return RoundManifest(created="2026-01-01T00:00:00+00:00", **common)
    absent = {names[-1]: HOSTILE} if t % 3 == 0 and len(names) > 1 else {}
    there = [name for name in names if name not in absent]
    loss = 2 + 3 * math.exp(-t / 20)
    updates, spans, metrics = {}, {}, {"train_loss": loss, "loss": loss, "perplexity": math.exp(loss)}
    metrics["pseudo_gradient_norm"] = 1.0
    for i, site in enumerate(there):
        took = 20 + 0.3 * i + chance.random()
        updates[site] = UpdateRef(
            attempt=1, sha256="a" * 64, tokens=640, weight=1 / len(there), bytes=3000, steps=10,
            metrics={"train_loss": loss + 0.01 * i, "last_loss": loss, "tokens_per_second": 900 + i,
                     "seconds": took},
        )  # fmt: skip
        spans[site] = [
            Span(phase="validate", start=0.1, seconds=0.5),
            Span(phase="download", start=0.7, seconds=0.4),
            Span(phase="train", start=1.2, seconds=took - 3),
            Span(phase="encode", start=took - 1.8, seconds=0.3),
            Span(phase="upload", start=took - 1.5, seconds=1.5),
            Span(phase="evaluate", start=len(names) + 22, seconds=1),
        ]
        metrics |= {f"delta_norm/{site}": 2 + 0.1 * i, f"cosine/{site}": 0.9 - 0.01 * i}
    for i, one in enumerate(there[:16]):
        metrics |= {f"cosine_pair/{one}/{other}": 0.5 - 0.01 * i for other in there[i + 1 : 16]}
    return RoundManifest(
        sampled=names, updates=updates, left_out=absent, metrics=metrics, global_step=10 * t,
        total_tokens=640 * len(there) * t,
        incidents={there[0]: ["local training was started 2 times"]} if t % 5 == 0 else {},
        evaluations={
            name: {"loss": loss, "perplexity": math.exp(loss) + i, "tokens": 10} for i, name in enumerate(names)
        },
        seconds={"sites": len(names) + 21.5, "aggregate": 0.3, "evaluate": 1.5}, spans=spans,
        opened="2026-01-01T00:00:00+00:00", created="2026-01-01T00:01:00+00:00", **common,
    )  # fmt: skip
