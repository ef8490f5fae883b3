"""What a machine's devices and link do, measured on this one; a child that fails or hangs is named."""

import os
import time
from pathlib import Path

import pytest

from photon_core.errors import ChildFailed, StoreRefused, StoreUnavailable
from photon_core.hardware import measure
from photon_core.hardware.measure import Transfer, in_child, measure_devices, measure_link
from photon_core.model.cost import peak_tflops
from photon_core.store.store import Store
from schemas.sections.local import Local

FOLDER = "run/rounds/000000/sites/a"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_processors_are_measured_as_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CPU_SIZE", 256)
    monkeypatch.setattr(measure, "PRODUCT_SECONDS", 0.05)
    found = measure_devices(Local(steps=1, batch_size=1, device="cpu"))
    assert (found.gpus, found.dtype, found.size) == ((), "float32", 256)
    assert found.processors == len(os.sched_getaffinity(0))
    assert 1e8 < found.reached < 1e14 and 1e8 < found.memory < 1e14


def test_probes_grow_while_they_go_fast_and_none_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST", 2**22)
    up, down = measure_link(Store(str(tmp_path)), FOLDER)
    assert up.size == down.size and up.size % 2**20 == 0, "all of the last probe came back"
    assert 0 < up.seconds < 20 and 0 < down.seconds < 20
    assert not files(tmp_path)
    assert Transfer(125_000_000, 2.0).gigabits == 0.5


def test_a_link_that_is_too_slow_for_one_probe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FIRST", 2**25)
    monkeypatch.setattr(measure, "LINK_SECONDS", 0.001)
    with pytest.raises(StoreUnavailable, match=r"33.6 MB were not written in 0 s; .* write link: \{up: \.\.\.\}"):
        measure_link(Store(str(tmp_path)), FOLDER)


def test_a_child_that_hangs_dies_or_fails_is_named() -> None:
    with pytest.raises(ChildFailed, match="sleep took more than 0 s: a driver or a server hangs"):
        in_child(time.sleep, 0.1, 60)
    with pytest.raises(ChildFailed, match=r"_exit was killed or ended \(exit code 3\)"):
        in_child(os._exit, 60, 3)
    with pytest.raises(ChildFailed, match="ValueError: invalid literal"):
        in_child(int, 60, "x")
    with pytest.raises(StoreRefused, match=r"^/proc/store cannot be written and read \(.* its permissions$"):
        in_child(measure_link, 60, Store("/proc/store"), FOLDER)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L4", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
