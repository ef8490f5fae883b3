"""Trackers: the contents of each one's files after two rounds; a missing package is reported before work."""

import json
import struct
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import FederationError, PhotonError
from photon_core.evidence.trackers import PACKAGES, check_trackers, tracked
from schemas.federation import Federation
from schemas.manifests import RoundManifest, UpdateRef
from tests.photon_core.training.conftest import make_federation


def manifest(t: int) -> RoundManifest:
    update = UpdateRef(
        attempt=1, sha256="0", tokens=640, weight=1.0, bytes=77, steps=5, metrics={"train_loss": 3.5 - t}
    )
    return RoundManifest(
        run="tiny",
        round=t,
        model_sha256="0",
        model=[],
        sampled=["alpha"],
        updates={"alpha": update},
        global_step=5 * t,
        total_tokens=640 * t,
        metrics={"perplexity": 20.0 / t},
        evaluations={"alpha": {"loss": 1.0, "perplexity": 21.0 / t, "tokens": 9.0}},
        federation_sha256="0",
        seconds={"sites": 1.5},
        created="",
        versions={},
    )


def tracking(folder: Path, name: str, **options: Any) -> Federation:
    section = {"name": name, "folder": str(folder / "trackers"), "options": options}
    return Federation.model_validate({**make_federation(folder).model_dump(), "trackers": [section]})


@pytest.mark.slow
def test_tensorboard_holds_every_round_under_the_runs_name(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from photon_core.evidence.tracking import log_round

    federation = tracking(tmp_path, "tensorboard")
    for t in (1, 2):
        log_round(federation, manifest(t))
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "tiny"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(tracked(manifest(1)))

    def scalars(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    assert scalars("global/perplexity") == [(1, 20.0), (2, 10.0)]
    assert scalars("sites/alpha/train_loss") == [(1, 2.5), (2, 1.5)]
    assert scalars("sites/alpha/validation_perplexity") == [(1, 21.0), (2, 10.5)]
    assert scalars("global/seconds/sites") == [(1, 1.5), (2, 1.5)]
    assert scalars("global/bytes_sent") == [(1, 77.0), (2, 77.0)]


@pytest.mark.slow
def test_mlflow_holds_them_in_one_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install the trackers extra to test it")
    from photon_core.evidence.tracking import log_round

    federation = tracking(tmp_path, "mlflow")
    for t in (1, 2):
        log_round(federation, manifest(t))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'trackers' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name.endswith("photon")]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny"
    found = client.get_metric_history(run.info.run_id, "global/perplexity")
    assert [(m.step, m.value) for m in found] == [(1, 20.0), (2, 10.0)]
    found = client.get_metric_history(run.info.run_id, "sites/alpha/train_loss")
    assert [(m.step, m.value) for m in found] == [(1, 2.5), (2, 1.5)]


@pytest.mark.slow
def test_wandb_holds_every_round_under_the_runs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what `wandb sync` would send, read from its files."""
    pytest.importorskip("wandb", reason="pip install the trackers extra to test it")
    from photon_core.evidence.tracking import log_round

    monkeypatch.setenv("WANDB_MODE", "offline")
    federation = tracking(tmp_path, "wandb")
    check_trackers(federation)
    for t in (1, 2):
        log_round(federation, manifest(t))
    files = sorted((tmp_path / "trackers" / "wandb").glob("offline-run-*/run-tiny.wandb"))
    found: list[dict[str, float]] = []
    for file in files:
        records = wandb_records(file)
        assert {(r.run.display_name, r.run.project) for r in records if r.HasField("run")} == {("tiny", "photon")}
        for record in records:
            if record.HasField("history"):
                row = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row})
    assert [row["_step"] for row in found] == [1, 2]
    assert [row["global/perplexity"] for row in found] == [20.0, 10.0]
    assert [row["sites/alpha/train_loss"] for row in found] == [2.5, 1.5]
    assert set(found[0]) >= set(tracked(manifest(1)))


def wandb_records(file: Path) -> list[Any]:
    """Records of an offline run: LevelDB's log format (blocks of 32 KiB; CRC, length, type) after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_tracker_that_is_not_installed_is_told_before_work(tmp_path: Path) -> None:
    check_trackers(tracking(tmp_path, "tensorboard"))
    with pytest.raises(FederationError) as told:
        check_trackers(tracking(tmp_path, "wandb"))
    assert str(told.value) == (
        "trackers: 'wandb' needs the package wandb>=0.19,<0.30, which is not installed on this machine; "
        "run pip install 'wandb>=0.19,<0.30', or drop the tracker"
    )


def test_a_trackers_version_that_composer_does_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "site" / "wandb-0.31.0.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.31.0\n")
    monkeypatch.syspath_prepend(there.parent)
    with pytest.raises(FederationError, match=r"needs the package wandb>=0.19,<0.30, but 0.31.0 is installed"):
        check_trackers(tracking(tmp_path, "wandb"))


def test_the_extra_asks_for_the_same_versions() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["optional-dependencies"]["trackers"] == list(PACKAGES.values())


@pytest.mark.slow
def test_options_that_are_not_the_loggers_are_told(tmp_path: Path) -> None:
    from photon_core.evidence.tracking import log_round

    with pytest.raises(PhotonError, match=r"trackers: cannot start 'tensorboard'.*colour"):
        log_round(tracking(tmp_path, "tensorboard", colour="red"), manifest(1))
