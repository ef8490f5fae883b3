"""Trackers: what stands in TensorBoard's event files after two rounds; what is missing is told before work."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import FederationError, PhotonError
from photon_core.trackers import check_trackers, tracked
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

    from photon_core.training.tracking import log_round

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
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow to test it")
    from photon_core.training.tracking import log_round

    federation = tracking(tmp_path, "mlflow")
    for t in (1, 2):
        log_round(federation, manifest(t))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'trackers' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name.endswith("photon")]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny"
    found = client.get_metric_history(run.info.run_id, "global/perplexity")
    assert [(m.step, m.value) for m in found] == [(1, 20.0), (2, 10.0)]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_tracker_that_is_not_installed_is_told_before_work(tmp_path: Path) -> None:
    check_trackers(tracking(tmp_path, "tensorboard"))
    with pytest.raises(FederationError, match="'wandb' needs the package wandb, which is not installed here"):
        check_trackers(tracking(tmp_path, "wandb"))


@pytest.mark.slow
def test_options_that_are_not_the_loggers_are_told(tmp_path: Path) -> None:
    from photon_core.training.tracking import log_round

    with pytest.raises(PhotonError, match=r"trackers: cannot start 'tensorboard'.*colour"):
        log_round(tracking(tmp_path, "tensorboard", colour="red"), manifest(1))
