"""Where theta^0 comes from: a run's round, a checkpoint, a site; recorded in round 0 and not to be changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile, FederationError, PhotonError
from photon_core.export.export import export_model
from photon_core.hashing import sha256_file
from photon_core.run.opening import open_run
from photon_core.run.run import Run, run_of
from photon_core.run.start import check_start, make_initial, site_start, upload_start
from photon_core.tensors.reader import TensorReader
from schemas.federation import Federation
from schemas.manifests import RemovalManifest, RoundManifest
from schemas.view import view_of
from tests.federations import committed
from tests.photon_core.export.conftest import make_rounds as make_rounds  # the fixture

Rounds = Callable[..., tuple[Federation, Run]]


def started(federation: Federation, folder: Path, **start: Any) -> tuple[Federation, Run, RoundManifest]:
    """A new run that starts there, opened."""
    data = {**federation.model_dump(), "run": "next", "start": start}
    new = Federation.model_validate(data)
    (folder / "scratch").mkdir(exist_ok=True)
    run = run_of(new)
    open_run(run, new, load_tokenizer("bytes").sha256, lambda: make_initial(new, folder / "scratch"))
    manifest = run.round(0)
    assert manifest is not None
    return new, run, manifest


def test_from_another_runs_round(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, run = make_rounds()
    new, _, manifest = started(federation, tmp_path, run="small", round=0)
    first = run.round(0)
    assert first is not None
    assert manifest.model_sha256 == first.model_sha256
    with TensorReader(run.store, run.round_dir(0), first.model) as reader:
        whole = np.concatenate([chunk.copy() for name in reader.tensors for chunk in reader.chunks(name, 1 << 20)])
    assert manifest.metrics == {"model_norm": pytest.approx(np.linalg.norm(whole.astype(np.float64)))}
    assert manifest.start is not None
    assert (manifest.start.kind, manifest.start.source) == ("run", f"{run.store.url}/small round 0")
    assert manifest.start.sha256 == {"round.json": run.round_sha256(0), "model": first.model_sha256}

    moved = Federation.model_validate({**new.model_dump(), "start": {"run": "small", "round": 1}})
    with pytest.raises(FederationError, match=r"start\.round is .* but the run was started with 0: restore it"):
        open_run(run_of(moved), moved, load_tokenizer("bytes").sha256, lambda: make_initial(moved, tmp_path))


def test_a_round_that_was_removed_is_told(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, run = make_rounds()
    run.record_removal(RemovalManifest(run="small", round=0, files=2, bytes=1, created="2026-01-01"))
    with pytest.raises(PhotonError, match=r"round 0's model was removed by photon gc .* kept rounds are 1"):
        started(federation, tmp_path, run="small", round=0)


def test_from_the_last_round_of_a_run_in_another_store(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, run = make_rounds()
    other = Federation.model_validate({**federation.model_dump(), "store": str(tmp_path / "new")})
    _, new, manifest = started(other, tmp_path, run="small", store=federation.store)
    last = run.round(1)
    assert last is not None and last.model_sha256 == manifest.model_sha256
    shutil.rmtree(run.store.url)  # nothing of it is needed any more
    for entry in manifest.model:
        new.store.check(entry, new.round_dir(0))


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_the_files_of_a_round_are_copied_side_by_side_and_verified(
    make_rounds: Rounds, tmp_path: Path, kind: str, connections: int
) -> None:
    store = f"memory://{tmp_path.name}-{connections}" if kind == "memory" else str(tmp_path / "store")
    federation, run = make_rounds(store=store, aggregation={"connections": connections})
    new = Federation.model_validate({**federation.model_dump(), "run": "next", "start": {"run": "small"}})
    last = run.round(1)
    assert last is not None and len(last.model) == 2
    (tmp_path / "scratch").mkdir()
    files = make_initial(new, tmp_path / "scratch").files
    assert [path.name for path in files] == ["00001-of-00002.safetensors", "00002-of-00002.safetensors"]
    assert [sha256_file(path) for path in files] == [entry.sha256 for entry in last.model]
    assert all(path.stat().st_nlink == 1 for path in files), "what is written to them is not written to the store"

    second = f"{run.round_dir(1)}/{last.model[1].path}"
    content = run.store.read(second)
    run.store.discard(second)
    run.store.create(second, content[:-1] + b"\x7f")
    shutil.rmtree(tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(CorruptFile, match=last.model[1].path):
        make_initial(new, tmp_path / "scratch")


def test_from_a_checkpoint(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    export_model(committed(federation, 1), tmp_path / "gpt2")
    _, _, manifest = started(federation, tmp_path, checkpoint=str(tmp_path / "gpt2"))
    assert manifest.start is not None and manifest.start.source == str(tmp_path / "gpt2")
    names = [path.name for path in (tmp_path / "gpt2").glob("*.safetensors")]
    assert set(manifest.start.sha256) == set(names)


def test_from_a_site(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    export_model(committed(federation, 1), tmp_path / "private")
    start = {"site": "north", "checkpoint": str(tmp_path / "private")}
    new = Federation.model_validate({**federation.model_dump(), "run": "next", "start": start})
    with pytest.raises(PhotonError, match="site 'north' has not uploaded the checkpoint that run 'next' starts"):
        started(federation, tmp_path, **start)

    (tmp_path / "site").mkdir()
    first = upload_start(view_of(new, "north"), tmp_path / "site")
    assert upload_start(view_of(new, "north"), tmp_path / "site") == first

    export_model(
        committed(federation, 0), tmp_path / "other"
    )  # the file is edited before round 0: the site is asked again
    edited = new.model_dump() | {"start": {"site": "north", "checkpoint": str(tmp_path / "other")}}
    (tmp_path / "again").mkdir()
    second = upload_start(view_of(Federation.model_validate(edited), "north"), tmp_path / "again")
    assert (first.attempt, second.attempt) == (1, 2) and first.sha256 != second.sha256
    assert upload_start(view_of(new, "north"), tmp_path / "site") == first
    _, run, manifest = started(federation, tmp_path, **start)
    assert manifest.start is not None
    assert (manifest.start.kind, manifest.start.source) == ("site", "north")
    assert manifest.start.sha256 == first.sha256
    assert str(tmp_path / "private") not in manifest.start.model_dump_json()  # it reveals only names of its disk
    assert site_start(run, "south") is None


def test_a_sites_files_are_checked_against_their_manifest(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    export_model(committed(federation, 1), tmp_path / "private")
    start = {"site": "north", "checkpoint": str(tmp_path / "private")}
    new = Federation.model_validate({**federation.model_dump(), "run": "next", "start": start})
    (tmp_path / "site").mkdir()
    manifest = upload_start(view_of(new, "north"), tmp_path / "site")
    run = run_of(new)
    path = Path(run.store.url) / run.site_dir(0, "north", 1) / manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match="blake3"):
        started(federation, tmp_path, **start)
    assert run.round(0) is None


def test_nothing_is_created_for_a_start_that_does_not_fit(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    smaller = {**federation.model_dump()["model"], "max_seq_len": 10}
    other = Federation.model_validate({**federation.model_dump(), "model": smaller})
    with pytest.raises(FederationError, match="the model of run 'small' has max_seq_len 20, this file's has 10"):
        started(other, tmp_path, run="small")
    with pytest.raises(FederationError, match="there is no run 'nobody' with rounds in"):
        started(federation, tmp_path, run="nobody")
    with pytest.raises(FederationError, match="round 9 of run 'small' is not committed; write 0 to 1"):
        started(federation, tmp_path, run="small", round=9)
    with pytest.raises(FederationError, match=r"there is no \.safetensors file"):
        started(federation, tmp_path, checkpoint=str(tmp_path / "nothing"))
    new = Federation.model_validate({**federation.model_dump(), "run": "next"})
    assert run_of(new).run_manifest() is None
    check_start(new)


def test_from_the_seed_the_manifest_is_as_ever(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    _, run, manifest = started(federation, tmp_path)
    assert manifest.start is None
    birth = run.run_manifest()
    assert birth is not None
    before = birth.model_copy(update={"federation": {k: v for k, v in birth.federation.items() if k != "start"}})
    from photon_core.run.opening import check_frozen

    new = Federation.model_validate({**federation.model_dump(), "run": "next"})
    check_frozen(before, new, birth.tokenizer_sha256)  # a run that is older than `start`
