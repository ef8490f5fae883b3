"""What a site says of a round's model, read as a stranger's word."""

import json
from pathlib import Path

import pytest

from photon_core.errors import CorruptFile, PhotonError
from photon_core.layout import MANIFEST_LIMIT, Run
from photon_core.rounds import commit_evaluation, evaluation
from photon_core.store import Store
from schemas.manifests import FileEntry, RemovalManifest

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
        json.dumps({"loss": 1.0}).encode(), b" " * 70_000,
    ],
)  # fmt: skip
def test_whatever_else_stands_there_is_refused(tmp_path: Path, said: bytes) -> None:
    run = Run(Store(str(tmp_path)), "run")
    commit_evaluation(run, 1, "a", MODEL, SCORES)
    (path,) = (tmp_path / "run/rounds/000001/sites/a").iterdir()
    path.write_bytes(said)
    with pytest.raises(CorruptFile):
        evaluation(Run(run.store, "run"), 1, "a", MODEL)


def test_a_manifest_that_nobody_would_read_is_not_committed(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "run")
    note = RemovalManifest(run="run", round=0, files=1, bytes=1, created="x" * MANIFEST_LIMIT)
    with pytest.raises(PhotonError, match=f"at most {MANIFEST_LIMIT} are read"):
        run.record_removal(note)
    assert run.removed(0) is None
