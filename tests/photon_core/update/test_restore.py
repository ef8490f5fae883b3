"""A site's trained model, restored from its committed update and compared with what its trainer had."""

from pathlib import Path

import numpy as np
import pytest
import torch

from photon_core.run.run import Run
from photon_core.tensors.local import LocalTensors
from photon_core.update.codecs.lossless import encode
from photon_core.update.restore import is_exact, write_trained
from schemas.manifests import UpdateManifest
from tests.played import MODEL, Played, drawn, put, tensors
from tests.worlds import write_world

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Played:
    played = Played(write_world(tmp_path_factory.mktemp("world"), root={"model": MODEL}, region={"model": MODEL}))
    played.play()
    return played


def last_update(tree: Played) -> tuple[Run, UpdateManifest]:
    """a's update for the newest round of north."""
    run = tree.run("north")
    t = run.latest()
    assert t is not None
    update = run.update(t, "a", 1)
    assert update is not None
    return run, update


def restored(run: Run, update: UpdateManifest, folder: Path) -> Arrays:
    base = run.round(update.round - 1)
    assert base is not None
    files = write_trained(run, base, update, folder, 1 << 20)
    found = LocalTensors.of((folder / entry.path for entry in files), files)
    return {name: found.array(name) for name in found.tensors}


def test_a_lossless_update_is_the_trained_model_bit_for_bit(tree: Played, tmp_path: Path) -> None:
    run, update = last_update(tree)
    after = drawn(run, "a", update.round)
    found = restored(run, update, tmp_path)
    assert set(after) - set(found) == {name for name in after if name.startswith("blocks.1.")}, "the key layers"
    assert all(np.array_equal(found[name], after[name]) for name in found)
    assert is_exact(update)


def test_a_site_that_started_from_rounded_parameters(tree: Played, tmp_path: Path) -> None:
    """Its trainer had theta~ + change, whatever the aggregation makes of that."""
    run, update = last_update(tree)
    base, after = run.round(update.round - 1), drawn(run, "a", update.round)
    assert base is not None
    theta = tensors(run, run.files_dir(base.round), base.model)
    rounded = {name: torch.from_numpy(values).bfloat16().float().numpy() for name, values in theta.items()}
    changes = {n: encode(rounded[n], after[n]) for n in after if not n.startswith("blocks.1.")}
    files = put(run, run.site_dir(update.round, "a", 1), changes)
    found = restored(run, update.model_copy(update={"files": files, "base_dtype": "BF16"}), tmp_path)
    assert found and all(np.array_equal(found[name], after[name]) for name in found)


def test_a_lossy_update_is_what_was_sent(tree: Played, tmp_path: Path) -> None:
    """theta plus the change as bfloat16, by torch's rounding."""
    from photon_core.update.codecs.registry import get_codec

    run, update = last_update(tree)
    base, after = run.round(update.round - 1), drawn(run, "a", update.round)
    assert base is not None
    theta = tensors(run, run.files_dir(base.round), base.model)
    changes = {n: after[n] - theta[n] for n in after if not n.startswith("blocks.1.")}
    codec = get_codec("bfloat16")
    folder = run.site_dir(update.round, "a", 1)
    files = put(run, folder, {n: codec.encode(change) for n, change in changes.items()})
    found = restored(run, update.model_copy(update={"files": files, "codec": "bfloat16"}), tmp_path)
    for name, change in changes.items():
        sent = torch.from_numpy(change).bfloat16().float().numpy()
        assert np.array_equal(found[name], theta[name] + sent)


@pytest.mark.parametrize(
    "changes", [{"codec": "int8:256"}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "noise_multiplier": 0.5}]
)
def test_what_is_not_exact(changes: dict[str, object], tree: Played) -> None:
    _, update = last_update(tree)
    assert not is_exact(update.model_copy(update=changes))
