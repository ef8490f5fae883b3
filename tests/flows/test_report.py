"""Every round leaves its report in the store and its picture in the Prefect UI, and is committed without them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from tests.federations import updates_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def artifacts(run: str) -> list[dict[str, object]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"photon-{run}-report"]))
    with get_client(sync_client=True) as client:
        return [artifact.model_dump() for artifact in client.read_artifacts(artifact_filter=key)]


def test_a_round_leaves_a_page_in_the_store_and_a_picture_in_the_ui(prepared: Callable[..., Federation]):
    from flows.federated_run import federated_run

    federation = prepared(run="reported", rounds={"count": 1, "report_every": 1})
    federated_run(federation)
    run = run_of(federation)
    path = f"{run.round_dir(1)}/report.html"
    page = run.store.read(path).decode()
    assert page.startswith("<!doctype html>") and 'id="round-1"' in page and "8 expectations" not in page
    [artifact] = artifacts("reported")
    assert "data:image/svg+xml;base64," in str(artifact["data"])
    assert run.store.locate(path) in str(artifact["data"])
    assert artifact["flow_run_id"] and artifact["task_run_id"]

    spans = history(run)[1].spans
    assert set(spans) == {"a", "b"}
    for site in "ab":
        assert [span.phase for span in spans[site]] == [
            "validate", "download", "train", "encode", "upload", "evaluate",
        ]  # fmt: skip
        assert all(span.start >= 0 for span in spans[site])
    assert all(check["success"] for check in updates_of(run, 1, "a")["a"].checks)


def test_a_report_that_fails_costs_nothing(
    prepared: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    from flows.federated_run import federated_run

    federation = prepared(run="unreported", rounds={"count": 1, "report_every": 1})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "matplotlib.py").write_text("raise ImportError('no plots today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    federated_run(federation)
    assert len(history(run_of(federation))) == 2
    limit = time.monotonic() + 60
    while "no plots today" not in caplog.text and time.monotonic() < limit:
        time.sleep(0.1)
    assert "round 1 is committed; its report could not be written" in caplog.text
    assert artifacts("unreported") == []
