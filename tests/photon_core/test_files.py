"""Whole or not at all, durable, and a success where the answer to a link was lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from photon_core import files
from photon_core.errors import StoreConflict
from photon_core.files import TEMPORARY, sync_tree, whole_file, write_whole
from photon_core.store.store import Store


@pytest.fixture(params=[errno.EEXIST, errno.ETIMEDOUT])
def lost_answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link is made, and its answer is lost, as on NFS: asked again, the server says that it is taken."""
    link = os.link

    def lost(source: Any, target: Any) -> None:
        link(source, target)
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", lost)


@pytest.mark.usefixtures("lost_answers")
def test_a_commit_whose_answer_is_lost_is_a_commit(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create("run/round.json", b"{}")
    (tmp_path / "shard").write_bytes(b"x" * 99)
    store.put(tmp_path / "shard", "run/shard")
    with store.open_write("run/other") as file:
        file.write(b"y")
    assert [store.read(f"run/{name}") for name in ("round.json", "shard", "other")] == [b"{}", b"x" * 99, b"y"]
    assert sorted(path.name for path in (tmp_path / "store/run").iterdir()) == ["other", "round.json", "shard"]


def test_a_rename_whose_answer_is_lost_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def lost(self: Path, target: Path) -> None:
        rename(self, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    monkeypatch.setattr(Path, "replace", lost)
    (tmp_path / "data.json").write_bytes(b"old")
    write_whole(tmp_path / "data.json", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"data.json": b"new"}


@pytest.mark.parametrize("there", ["other", "longer than ours", "link", "folder"])
def test_another_writers_name_stands(there: str, tmp_path: Path) -> None:
    store, path = Store(str(tmp_path)), tmp_path / "round.json"
    if there == "link":
        (tmp_path / "x").write_bytes(b"ours!")
        path.symlink_to(tmp_path / "x")
    elif there == "folder":
        path.mkdir()
    else:
        path.write_bytes(there.encode())
    with pytest.raises(StoreConflict):
        store.create("round.json", b"ours!")
    assert path.is_symlink() == (there == "link") and path.is_dir() == (there == "folder")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with pytest.raises(ValueError, match="no"), whole_file(path) as file:
        file.write(b"half")
        raise ValueError("no")
    with pytest.raises(FileExistsError):
        write_whole(path, b"new", once=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"old"


def test_writers_without_a_lock_do_not_meet(tmp_path: Path) -> None:
    """Two processes that write the same cache at once (E6): one's is there at the end, and nothing failed."""
    script = (
        "import sys; from pathlib import Path; from photon_core.data.verify import VerifiedFiles\n"
        "folder = Path(sys.argv[1])\n"
        "for n in range(150):\n"
        "    (file := folder / f'{sys.argv[2]}-{n % 3}').write_text(str(n))\n"
        "    cache = VerifiedFiles(folder / 'cache' / 'verified.json')\n"
        "    cache.matches(file, ''); cache.save()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "abc"]
    assert [process.communicate(timeout=100)[1] for process in processes] == [b""] * 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["verified.json"]


def test_names_of_temporary_files_are_told_from_users_names(tmp_path: Path) -> None:
    assert TEMPORARY.fullmatch(files.temporary_name(tmp_path / "a").name)
    assert not any(map(TEMPORARY.fullmatch, (".a.tmp", "a.tmp", "x.hidden.tmp")))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "fifo")
    sync_tree(tmp_path)  # what is no file is skipped, without a wait
