"""A site's scores: committed once, and read as an untrusted claim."""

import json
from pathlib import Path

import pytest

from photon_core.errors import CorruptFile
from photon_core.evidence.evaluations import commit_evaluation, evaluation
from photon_core.run.run import Run
from photon_core.store.store import Store
from schemas.manifests import FileEntry

MODEL = [FileEntry(path="model/1", sha256="a" * 64, bytes=1)]
SCORES = {"loss": 2.0, "perplexity": 7.4, "tokens": 100.0}


def test_scores_are_committed_once(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "run")
    assert evaluation(run, 1, "a", MODEL) is None
    commit_evaluation(run, 1, "a", MODEL, SCORES)
    commit_evaluation(run, 1, "a", MODEL, {**SCORES, "loss": 3.0})
    assert evaluation(run, 1, "a", MODEL) == SCORES


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\xff", b"[]", b"null", b"{}", b"[" * 60_000, b'{"loss":' * 10_000,
        json.dumps({**SCORES, "loss": 10**400}).encode(), json.dumps({**SCORES, "loss": None}).encode(),
        json.dumps({**SCORES, "loss": float("nan")}).encode(), json.dumps({**SCORES, "loss": -1}).encode(),
        json.dumps({**SCORES, "tokens": 1e16}).encode(), json.dumps({**SCORES, "loss/../x": 1}).encode(),
        json.dumps({**SCORES, "accuracy": 1.0}).encode(), json.dumps({**SCORES, "perplexity/x": 1.0}).encode(),
        json.dumps({"loss": 1.0}).encode(), b" " * 70_000,
    ],
)  # fmt: skip
def test_whatever_else_the_store_holds_is_refused(tmp_path: Path, said: bytes) -> None:
    run = Run(Store(str(tmp_path)), "run")
    commit_evaluation(run, 1, "a", MODEL, SCORES)
    (path,) = (tmp_path / "run/rounds/000001/sites/a").iterdir()
    path.write_bytes(said)
    with pytest.raises(CorruptFile):
        evaluation(Run(run.store, "run"), 1, "a", MODEL)


def test_a_diverged_models_perplexity_has_no_bound(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "run")
    scores = {**SCORES, "perplexity": 1e304, "loss/x": 1.0, "tokens/x": 9.0}
    commit_evaluation(run, 1, "a", MODEL, scores)
    assert evaluation(run, 1, "a", MODEL) == scores
