"""A round's report in the run's own store, whatever server that is on."""

from collections.abc import Callable
from pathlib import Path

from photon_core.run.run import Run
from schemas.federation import Federation
from tests.photon_core.conftest import careless_s3_endpoint as careless_s3_endpoint  # the fixtures
from tests.photon_core.conftest import s3_store
from tests.photon_core.export.conftest import make_rounds as make_rounds


def test_a_server_for_a_single_writer_gets_its_reports(
    careless_s3_endpoint: str, make_rounds: Callable[..., tuple[Federation, Run]], tmp_path: Path
) -> None:
    from tasks.reporting import _make  # and with it Prefect, which is not imported while tests are collected

    place = s3_store(careless_s3_endpoint, single_writer=True).url
    federation, run = make_rounds(
        store=place, storage={"endpoint_url": careless_s3_endpoint, "single_writer": True}
    )
    made = _make(federation, 1, str(tmp_path))
    assert made["new"] and run.store.read(f"{run.round_dir(1)}/report.html").startswith(b"<!doctype html>")
