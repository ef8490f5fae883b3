"""The site's private folder: what stays of the last rounds, also where two runs share it."""

from pathlib import Path

from photon_core.evidence.events import Fact, Kind
from photon_core.hashing import sha256_file
from photon_core.training.state.folder import find, find_result, publish, writing
from photon_core.update.trained import Trained
from schemas.manifests import Attention, FileEntry


def leave(
    folder: Path, run: str, t: int, resume: tuple[int, int] | None = None, behind: tuple[tuple[int, int], ...] = ()
) -> None:
    """The state of a round, as its training leaves it."""
    with writing(folder) as written:
        (written / "update").mkdir()
        (written / "update" / "1.safetensors").write_text(f"{run} {t}")
        (written / "training.pt").write_text(f"{run} {t}")
        update = FileEntry(
            path="update/1.safetensors",
            sha256=sha256_file(written / "update" / "1.safetensors"),
            bytes=3,
            tensors={},
        )
        trained = Trained(
            **{"round": t, "attempt": 1, "base_sha256": "", "codec": "float32", "tokens": 1, "steps": 1},
            **{"metrics": {}, "files": [update], "folder": "", "seconds": {}},
            notes=[Fact(Kind.CHECKPOINT_FOREIGN, {"at": 2})],
        )
        publish(folder, written, trained, f"{run} {t}", resume, behind=behind)


def test_the_last_three_rounds_stay(tmp_path: Path):
    (tmp_path / "state").mkdir()
    for t in (1, 2, 3, 4, 5):
        leave(tmp_path, "one", t)
    assert [t for t in range(1, 6) if find(tmp_path, t, 1)] == [3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "state" / "000001-0001").iterdir()) == ["trained.json"]


def test_the_last_one_that_was_aggregated_stays_however_many_come_too_late(tmp_path: Path):
    (tmp_path / "state").mkdir()
    leave(tmp_path, "one", 1)
    for t in (2, 3, 4, 5, 6):
        leave(tmp_path, "one", t, resume=(1, 1))
    assert [t for t in range(1, 7) if find(tmp_path, t, 1)] == [1, 4, 5, 6]
    leave(tmp_path, "one", 7, resume=(6, 1))
    assert [t for t in range(1, 8) if find(tmp_path, t, 1)] == [5, 6, 7]


def test_what_a_rollback_has_left_behind_is_set_aside_whole(tmp_path: Path):
    """Round 6 is a rollback to round 3: the states of rounds 4 and 5 are neither counted nor dropped."""
    (tmp_path / "state").mkdir()
    for t in (1, 2, 3, 4, 5):
        leave(tmp_path, "one", t)
    for t in (7, 8, 9, 10):
        leave(tmp_path, "one", t, resume=(t - 1, 1) if t > 7 else (3, 1), behind=((4, 6),))
    assert [t for t in range(1, 11) if find(tmp_path, t, 1)] == [4, 5, 8, 9, 10]
    for t in (4, 5):
        assert find_result(tmp_path, t, 1, f"one {t}") is not None


def test_a_second_run_in_the_same_folder_keeps_what_it_has_just_trained(tmp_path: Path):
    (tmp_path / "state").mkdir()
    for t in (1, 2, 3, 4, 5):
        leave(tmp_path, "one", t)
    for t in (1, 2):
        leave(tmp_path, "two", t)
        found = find_result(tmp_path, t, 1, f"two {t}")
        assert found is not None and (Path(found.folder) / "update/1.safetensors").read_text() == f"two {t}"
    assert find_result(tmp_path, 5, 1, "one 5") is not None, "the first run's last round is still there"


def test_key_layers_and_how_they_were_entered_with_are_kept(tmp_path: Path):
    (tmp_path / "state").mkdir()
    leave(tmp_path, "one", 1)
    assert "key_layers" not in (tmp_path / "state/000001-0001/trained.json").read_text(), "as it always was"
    entry = {"blocks.1": Attention(rows=["own", "parent"], scores=[1.0, 0.25], weights=[0.75, 0.25], tau=0.5)}
    with writing(tmp_path) as written:
        (written / "update").mkdir()
        for name in ("training.pt", "update/blocks.1-00001-of-00001.safetensors"):
            (written / name).write_text(name)
        layer = FileEntry(path=name, sha256=sha256_file(written / name), bytes=len(name))
        trained = Trained(
            **{"round": 2, "attempt": 1, "base_sha256": "b", "codec": "float32", "tokens": 1, "steps": 1},
            **{"metrics": {}, "files": [], "folder": "", "seconds": {}, "key_layers": [layer]},
            **{"entry_sha256": "e", "entry": entry},
        )
        published = publish(tmp_path, written, trained, "key")
    assert find_result(tmp_path, 2, 1, "key") == published
    assert published.entry == entry and published.key_layers == [layer]
    (Path(published.folder) / layer.path).write_text("damaged")
    assert find_result(tmp_path, 2, 1, "key") is None


def test_what_is_not_ours_in_the_private_folder_stays(tmp_path: Path):
    """Through cleaning after killed writers, rounds long past, and a state that is replaced."""
    state = tmp_path / "state"
    mine = [state / name for name in (".writing-123/notes.txt", "000001-backup/training.pt", "x/y")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    (state / ".writing-123/training.pt").write_text("half")
    (state / ".writing-77").mkdir()
    leave(tmp_path, "one", 1)
    leave(tmp_path, "one", 2)
    mine.append(state / "000002-0001/update/notes.txt")
    mine[-1].write_text("mine")
    for t in (3, 4, 5, 6):
        leave(tmp_path, "one", t)
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert not (state / ".writing-123/training.pt").exists() and not (state / ".writing-77").exists()
    assert not (state / "000002-0001/training.pt").exists()


def test_notes_are_kept_as_facts_and_sentences_of_early_versions_are_read(tmp_path: Path):
    (tmp_path / "state").mkdir()
    leave(tmp_path, "one", 1)
    file = tmp_path / "state" / "000001-0001" / "trained.json"
    text = file.read_text()
    assert '"notes":[{"data":{"at":2},"kind":"checkpoint.foreign"}]' in text
    found = find_result(tmp_path, 1, 1, "one 1")
    assert found is not None and found.notes == [Fact(Kind.CHECKPOINT_FOREIGN, {"at": 2})]
    file.write_text(text.replace('{"data":{"at":2},"kind":"checkpoint.foreign"}', '"it was resumed"'))
    found = find_result(tmp_path, 1, 1, "one 1")
    assert found is not None and list(map(str, found.notes)) == ["it was resumed"]
