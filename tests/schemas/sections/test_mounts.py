"""A folder that is mounted twice is one place."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.sections.mounts import other_names, seen_twice

TABLE = r"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 8:1 /home/text /srv/x/data rw - ext4 /dev/sda1 rw
23 21 8:1 /my\040disk /mnt rw shared:1 - ext4 /dev/sda1 rw
24 21 0:5 / /proc rw - proc proc rw
"""


def test_what_a_path_is_called_on_its_file_system() -> None:
    mounts = seen_twice(TABLE)
    assert {mount.device for mount in mounts} == {"8:1"}
    assert list(other_names(("home", "text"), mounts)) == [("8:1", ("home", "text"))]
    assert list(other_names(("srv", "x"), mounts)) == [("8:1", ("srv", "x")), ("8:1", ("home", "text"))]
    assert list(other_names(("srv", "x", "data", "a"), mounts)) == [("8:1", ("home", "text", "a"))]
    assert ("8:1", ("my disk", "b")) in list(other_names(("mnt", "b"), mounts))


def bound(folder: Path, at: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in a separate mount namespace, where `at` is the folder text, too."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(folder / "text"), str(folder / at), *command],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_places_that_overlap_through_a_bind_mount_are_refused_by_name(
    write_federation: Callable[..., Path],
) -> None:
    file = write_federation(sites=("a",))
    (file.parent / "sites/a/data").mkdir(parents=True)
    if bound(file.parent, "sites/a/data", ["true"]).returncode:
        pytest.skip("this container may not mount")
    command = [sys.executable, "-c", "from photon_cli.main import main; main()", "prepare", str(file)]
    done = bound(file.parent, "sites/a/data", command)
    assert done.returncode == 2 and "sites[a].state_dir" in done.stderr and "streams[text].source" in done.stderr
    assert [path.name for path in (file.parent / "text").iterdir()] == ["a.jsonl"]
