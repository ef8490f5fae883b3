"""photon join --measure: the printed YAML is what the federation file takes, and says how it was found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from photon_cli.main import app
from photon_cli.measure import declaration
from photon_core.hardware.measure import Devices, Transfer
from photon_core.hardware.parallelism import choose_infra
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.view import view_of
from tests.federations import sample, site

UP, DOWN = Transfer(67_108_864, 0.5), Transfer(67_108_864, 0.25)


def with_measured(file: Path, text: str) -> Federation:
    """The file with what was printed in the place of the site's own."""
    data = yaml.safe_load(file.read_text())
    data["sites"][0] |= yaml.safe_load(text)
    file.write_text(yaml.safe_dump(data))
    return load_federation(file)


@pytest.mark.slow
def test_a_machine_without_gpus_and_a_store_in_a_folder(write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    done = CliRunner().invoke(app, ["join", str(file), "--site", "a", "--measure"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not [path for path in (file.parent / "store").rglob("*") if path.is_file()], "no probe stays"
    assert "no GPU is used" in done.stdout and "# a product of 2048 x 2048 float32 matrices" in done.stdout
    assert "then it trains with one device: the site has one device" in done.stdout
    federation = with_measured(file, done.stdout)
    hardware, link = federation.sites[0].hardware, federation.sites[0].link
    assert hardware is not None and (hardware.nodes, hardware.devices, hardware.interconnect) == (1, 1, None)
    assert 1e-4 < hardware.tflops < 100 and 0.1 < (hardware.memory_gb or 0) < 1e5
    assert link is not None and link.up > 0 and (link.down or 0) > 0


def federation(**local: Any) -> Federation:
    values = {"steps": 10, "batch_size": 256, "precision": "amp_bf16", **local}
    return sample(store="s3://notes/rounds", local=values, recipe=None, sites=[site("a")])


def found(*gpus: str, **values: Any) -> Devices:
    known = {"memory": 85_055_504_384, "dtype": "bfloat16", "size": 8192, "reached": 712.34e12, "processors": 96}
    return Devices(gpus, **{**known, **values})


def test_several_gpus_whose_peak_is_known() -> None:
    text = declaration(view_of(federation(), "a"), found(*["NVIDIA H100 80GB HBM3"] * 8), UP, DOWN)
    assert text == (
        """# For the site a; replace its hardware and link, if any, with these lines
    hardware:
      nodes: 1  # each separate machine is its own site
      devices: 8  # 8 x NVIDIA H100 80GB HBM3
      tflops: 989.4  # the vendor's peak; a product of 8192 x 8192 bfloat16 matrices reached 712.3, on the slowest
      memory_gb: 85  # in 10^9 bytes, of the smallest device
    link:
      up: 1.074  # Gbit/s: 67.1 MB in 500 ms to s3://notes/rounds
      down: 2.147  # Gbit/s: 67.1 MB back in 250 ms
# then it trains with DDP over 8 devices: training takes 0.3 GB of a device's 85 GB, of which 76.5 are used"""
    )


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        (found("NVIDIA L4", reached=58e12), "tflops: 58  # a product of 8192 x 8192 bfloat16 matrices"),
        (found("NVIDIA H100 80GB HBM3", dtype="float32", reached=5.1e13), "tflops: 51  # a product of 8192"),
        (found("NVIDIA H100 80GB HBM3", "NVIDIA L4"), "devices: 2  # 1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA L4"),
        (found("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"), "tflops: 312  # the vendor's peak"),
        (found("NVIDIA H100 80GB HBM3", "NVIDIA L4"), "tflops: 712.3  # a product"),
        (found(reached=1.5e7), "tflops: 0.000015  # a product"),
    ],
)
def test_what_is_known_of_a_device_decides_on_its_line(devices: Devices, line: str) -> None:
    text = declaration(view_of(federation(), "a"), devices, UP, DOWN)
    assert f"      {line}" in text
    data = federation().model_dump(mode="json")
    data["sites"][0] |= yaml.safe_load(text)
    assert choose_infra(view_of(Federation.model_validate(data), "a")).ranks == max(1, len(devices.gpus))


def test_what_would_be_refused_is_said() -> None:
    text = declaration(view_of(federation(batch_size=4), "a"), found(*["NVIDIA H100 80GB HBM3"] * 8), UP, DOWN)
    assert "# then it is refused: sites[a].hardware: trains with DDP" in text
    assert "write a batch of at least one sequence a device" in text and yaml.safe_load(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--coordinator"], "--measure measures a site"), (["--site", "zebra"], "no site is named 'zebra'")],
)
def test_only_a_site_is_measured(
    write_federation: Callable[..., Path], arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["join", str(write_federation()), *arguments, "--measure"])
    assert message in f"{done.output} {done.exception}"
