"""A store of an earlier version: written at commit d16f7a8, before events, it is read, shown and continued.

tests/stores/d16f7a8 is what `photon run` of that commit left after two rounds of two sites: every manifest, the
latest model, the sites' prepared data and one private state. In its second round a site lost its private state,
the other one's shard was missing, and the guard lowered the server's learning rate.
"""

import json
import shutil
from pathlib import Path

import pytest

from photon_cli.report import report
from photon_cli.status import show_status
from photon_cli.tree import alone
from photon_core.run.history import history, remarks
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.reading.load import load_federation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
STORE = Path(__file__).parents[1] / "stores" / "d16f7a8"
# the sentence of the version that wrote the store
LOST = (
    "the private state of round 1, attempt 1 is missing or damaged: optimizer state and data stream start afresh"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORE, tmp_path / "old")) / "federation.yaml"


@pytest.fixture
def federation(file: Path) -> Federation:
    return load_federation(file)


def test_its_rounds_say_what_they_said(federation: Federation) -> None:
    guard, left_out, incident = remarks(history(run_of(federation))[2])
    assert guard.startswith("Guard: the server's step is 0.1914, 1.23 times its running value")
    assert guard.endswith("server.lr lowered from 1 to 0.5, and the round applied again")
    assert left_out.startswith("Excluded: b (validate: ") and "shard.00000.mds.zstd: missing" in left_out
    assert incident == f"a: site 'a': {LOST}"


def test_its_status_and_report(federation: Federation, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_status(alone(federation, file), {}, as_json=True, watch=False)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["committed"], facts["trained"], facts["count"]) == (2, 2, 3)
    page = file.parent / "report.html"
    report(alone(federation, file), {}, page, quiet=True)
    text = page.read_text("utf-8")
    assert "missing or damaged" in text and "shard.00000.mds.zstd: missing" in text


def test_its_next_round_has_the_same_form(federation: Federation) -> None:
    from flows.federated_run import federated_run

    federated_run(federation)
    _, first, second, third = history(run_of(federation))
    assert third.previous_sha256 == run_of(federation).round_sha256(2)
    assert set(third.updates) == set(third.evaluations) == {"a", "b"} and not third.left_out
    (lost,) = third.incidents["b"]
    state = "site 'b': the private state of round 1, attempt 1 is missing or damaged; "
    assert lost.startswith(state) and "a" not in third.incidents  # whose private state is read
    for before in (first, second):
        old, new = (manifest.model_dump(mode="json") for manifest in (before, third))
        assert old.keys() <= new.keys()
    phases = {site: {span.phase for span in spans} for site, spans in third.spans.items()}
    assert phases == {site: {"validate", "download", "train", "encode", "upload", "evaluate"} for site in "ab"}
    assert {span.phase for span in first.spans["a"]} == phases["a"]
