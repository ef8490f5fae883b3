"""Shards that go up while the next ones are encoded: found by the upload, and never in its way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.run.opening import put_files
from photon_core.run.run import run_of
from photon_core.training.job import LocalJob
from photon_core.training.train import train
from photon_core.update.upload import EarlyUpload
from schemas.federation import Federation
from tests.photon_core.training.test_train import make_job, theta_zero
from tests.s3_server import FaultProxy


@pytest.fixture
def job(make_site: Callable[..., Federation], s3_proxy: FaultProxy, s3_bucket: str, tmp_path: Path) -> LocalJob:
    federation = make_site()
    storage = federation.storage.model_copy(update={"endpoint_url": s3_proxy.url})
    moved = federation.model_copy(update={"store": f"s3://{s3_bucket}/x", "storage": storage})
    return dataclasses.replace(make_job(moved, theta_zero(moved), tmp_path), announce=True)


def upload(job: LocalJob, files: list[Path]) -> Any:
    run = run_of(job.view.federation)
    return put_files(run, run.site_dir(job.round, job.view.name, job.attempt), files)


def test_the_upload_finds_what_training_has_announced(job: LocalJob, s3_proxy: FaultProxy) -> None:
    announced: list[str] = []
    with EarlyUpload(job.view, job.round, job.attempt) as early:

        def report(values: dict[str, Any]) -> None:
            if "file" in values:
                announced.append(values["file"])
                early.put(Path(values["file"]))
                early.wait()

        trained = train(job, report)
    assert [Path(path).name for path in announced] == [Path(entry.path).name for entry in trained.files]

    s3_proxy.requests.clear()
    files = upload(job, [Path(trained.folder) / entry.path for entry in trained.files])
    assert {request.method for request in s3_proxy.requests} == {"HEAD"}
    assert [file.sha256 for file in files] == [file.sha256 for file in trained.files]
    for file in files:
        run_of(job.view.federation).store.check(file, "tiny/rounds/000001/sites/alpha/0001")


def test_what_could_not_go_early_goes_later(job: LocalJob, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    trained = train(job, lambda _: None)
    paths = [Path(trained.folder) / entry.path for entry in trained.files]
    with EarlyUpload(job.view, job.round, job.attempt) as early:
        early.put(tmp_path / "renamed-meanwhile.safetensors")
        early.wait()
        early.put(paths[0])
        early.wait()
        assert not any(request.method == "PUT" for request in s3_proxy.requests)
    with EarlyUpload(job.view, job.round, job.attempt) as early:
        s3_proxy.away_for(0.5)
        early.put(paths[0])
        early.wait()
    assert s3_proxy.broken
    files = upload(job, paths)
    run_of(job.view.federation).store.check(files[0], "tiny/rounds/000001/sites/alpha/0001")
