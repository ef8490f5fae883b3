"""Mistakes at the command line: one clear line, the documented exit code, no traceback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_cli import reach
from photon_core.errors import StoreUnavailable
from schemas.reading.load import load_federation

PHOTON = Path(sys.executable).parent / "photon"
STORE = "store: store\n"
AWAY = 'store: s3://bucket/x\nstorage: {endpoint_url: "http://127.0.0.1:9", region: eu-central-1}\n'


def photon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """As somebody without a server, and without credentials anywhere."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "PHOTON_"))}
    env = {**kept, "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    command = [PHOTON, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def write(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def assert_refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("photon: ") and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["report"], ["export", "--to", "taken"], ["generate", "--prompt", "x"], ["gc"]]
)
def test_before_the_first_run(command: list[str], write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    assert_refused(photon(*command, file), 1, "run 'tiny' has no rounds in ")
    assert not (file.parent / "store").exists()


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"store": "s4://bucket/x"}, "store: 's4://bucket/x' "),
        ({"local": {"steps": 4, "batch_size": 1, "device": "cpu"}}, "sites[a].hardware: trains with DDP"),
    ],
)
def test_what_no_site_could_do_is_not_deployed(
    wrong: dict[str, Any], problem: str, write_federation: Callable[..., Path]
) -> None:
    file = write_federation(**wrong)
    write(file, "- name: a\n", "- name: a\n  hardware: {devices: 2, tflops: 1, parallel: ddp}\n")
    assert_refused(photon("deploy", file), 2, problem)


@pytest.mark.parametrize(
    "t, site, problem",
    [
        ("3", "a", "round 3: the file has 2 rounds; raise rounds.count"),
        ("2", "x", "no site is named 'x'; write one of: a, b, c"),
        ("2", "c", "round 2 samples 1 of 3 sites, and 'c' is not among them: it would not use the update. "
         "Round 2 samples: a"),
    ],
)  # fmt: skip
def test_work_that_no_round_asks_for(t: str, site: str, problem: str, committed: Callable[..., Path]) -> None:
    file = committed(2 if t == "3" else 1, sites=("a", "b", "c"), rounds={"count": 2, "sites_per_round": 1})
    assert_refused(photon("rerun", file, "--round", t, "--site", site), 2, problem)


def test_a_finished_run_starts_nothing(committed: Callable[..., Path]) -> None:
    file = committed(2)
    done = photon("run", file)
    assert done.returncode == 0, done.stderr
    assert f"all 2 rounds are committed. To continue, raise rounds.count in {file}" in done.stdout
    assert not (file.parent / ".prefect").exists()


def test_a_finished_run_is_not_taken_for_another(committed: Callable[..., Path]) -> None:
    file = committed(2)
    write(file, "d_model: 32", "d_model: 64")
    assert_refused(photon("run", file), 2, "model.d_model is 64, but the run was started with 32: restore it, or")


def test_a_full_disk(committed: Callable[..., Path]) -> None:
    assert_refused(photon("report", committed(1), "--to", "/dev/full"), 1, "No space left on device")


@pytest.mark.parametrize("command", ["status", "plan"])
def test_a_protocol_that_nobody_knows(command: str, write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    write(file, STORE, "store: warp://bucket/x\n")
    message = f"{file}:2: store: 'warp://bucket/x' cannot be opened (Protocol not known: warp); write a path, or"
    assert_refused(photon(command, file), 2, message)


def test_a_store_that_is_not_there_is_told_soon(
    write_federation: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_federation()
    write(file, STORE, AWAY)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(reach, "SECONDS", 0.5)
    with pytest.raises(StoreUnavailable, match=r"EndpointConnectionError.*correct store and storage.endpoint_url"):
        reach.reachable(load_federation(file))


def test_a_plan_needs_no_store(write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    write(file, STORE, AWAY)
    assert_refused(photon("status", file), 1, "there are no credentials to use")
    done = photon("plan", file)
    assert done.returncode == 0 and "23,040 parameters" in done.stdout
    assert "photon: planned without the rounds so far: look at s3://bucket/x" in done.stderr


def test_windows_line_ends_and_a_folder_with_spaces(write_federation: Callable[..., Path]) -> None:
    file = write_federation(folder="a folder with spaces")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    done = photon("status", file)
    assert done.returncode == 0 and "no rounds in" in done.stdout, done.stderr
