"""What a site says of a round's model, read as a stranger's word; and which work a round asks for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.errors import CorruptFile, FederationError, PhotonError, StoreConflict
from photon_core.run.evaluations import commit_evaluation, evaluation
from photon_core.run.run import MANIFEST_LIMIT, Run
from photon_core.run.updates import check_asked, check_in_time
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.manifests import FileEntry, RemovalManifest, UpdateManifest
from tests.federations import site
from tests.photon_core.export.conftest import make_rounds as make_rounds  # the fixture

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


def test_no_round_asks_for_a_paused_site(make_rounds: Callable[..., tuple[Federation, Run]]) -> None:
    federation, _ = make_rounds(sites=[site("north"), site("south", paused=True)])
    check_asked(federation, 2, "north")
    with pytest.raises(FederationError, match=r"site 'south' is paused.* take its 'paused' out of the file"):
        check_asked(federation, 2, "south")


@pytest.mark.parametrize("name, t, attempt, used", [
    ("north", 2, 1, None),
    ("north", 1, 1, None),
    ("north", 1, 2, "with attempt 1"),
    ("west", 1, 1, "without the site"),
])  # fmt: skip
def test_an_update_that_its_round_did_not_use(
    name: str, t: int, attempt: int, used: str | None, make_rounds: Callable[..., tuple[Federation, Run]]
) -> None:
    _, run = make_rounds()
    update = UpdateManifest(
        run="small", round=t, site=name, attempt=attempt, base_sha256="", codec="float32", files=[], tokens=1,
        steps=1, metrics={}, data_sha256="", versions={}, previous_sha256="",
    )  # fmt: skip
    if used is None:
        return check_in_time(run, update)
    with pytest.raises(
        StoreConflict, match=f"attempt {attempt} of site '{name}' .* was committed {used} meanwhile"
    ):
        check_in_time(run, update)
