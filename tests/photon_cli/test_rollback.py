"""Point 6 at the command line: what cannot be gone back to is refused in one line, with the remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.run.provenance import utc_now
from photon_core.run.run import run_of
from schemas.manifests import RemovalManifest
from schemas.reading.load import load_federation
from tests.photon_cli.test_mistakes import assert_refused, photon


@pytest.mark.parametrize("to, code, message", [
    ("3", 2, "round 3 is the latest of run 'tiny'; write --to 0 to 2"),
    ("4", 2, "round 4 of run 'tiny' is not committed; write --to 0 to 2"),
    ("1", 1, "round 1's model was removed by photon gc"),
    ("2", 1, "model/2.safetensors is missing, although a manifest covers it"),
])  # fmt: skip
def test_a_round_that_is_not_there(to: str, code: int, message: str, committed: Callable[..., Path]) -> None:
    file = committed(3)
    run = run_of(load_federation(file))
    run.record_removal(RemovalManifest(run="tiny", round=1, files=1, bytes=1, created=utc_now()))
    done = photon("rollback", file, "--to", to)
    assert_refused(done, code, message)
    assert to != "1" or "kept rounds are 0, 2, 3" in done.stderr
    assert run.latest() == 3


def test_before_the_first_run_there_is_nothing_to_go_back_to(write_federation: Callable[..., Path]) -> None:
    file = write_federation()
    assert_refused(
        photon("rollback", file, "--to", "0"), 2, "there is nothing to roll back; correct the file's run or"
    )
    assert not (file.parent / "store").exists()
    assert photon("rollback", file).returncode == 2


def test_a_reason_with_a_secret_does_not_enter_the_store(committed: Callable[..., Path]) -> None:
    file = committed(2)
    done = photon("rollback", file, "--to", "1", "--reason", "as in https://me:hunter2@wiki.example.org/7")
    assert_refused(done, 2, "the reason looks like it holds a secret")
    assert "hunter2" not in done.stdout + done.stderr
    assert run_of(load_federation(file)).latest() == 2
