"""An interrupted pass over a round's updates is taken up: finished shards are reused once they prove whole."""

from pathlib import Path

import numpy as np
import pytest

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.errors import StoreUnavailable
from photon_core.run.run import model_sha256
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.writer import ShardWriter
from schemas.manifests import ShardRecord
from schemas.sections.server import Server


@pytest.mark.parametrize("damage", [False, True])
def test_finished_shards_are_reused_and_damaged_ones_made_anew(
    tmp_path: Path, make_run, damage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = {"a": np.ones((40, 5), np.float32), "b": np.zeros(30, np.float32)}
    sites = {f"s{k}": ({n: v + np.float32(0.1 * (k + 1)) for n, v in theta.items()}, 10 + k) for k in range(3)}
    server = Server(optimizer="nesterov", momentum=0.9)
    run, updates = make_run(Store(str(tmp_path)), theta, sites, 200)
    first = aggregate(run, 1, updates, server, limits=Limits(shard_bytes=200))
    if damage:
        path = tmp_path / run.round_dir(1) / first.model[1].path
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    written = []
    plain = ShardWriter._append
    monkeypatch.setattr(ShardWriter, "_append", lambda self, data: (written.append(len(data)), plain(self, data)))
    again = aggregate(run, 1, updates, server, limits=Limits(shard_bytes=200))
    assert model_sha256(again.model) == model_sha256(first.model)
    assert model_sha256(again.optimizer) == model_sha256(first.optimizer)
    assert again.norms == first.norms
    assert [a.path == b.path for a, b in zip(again.model, first.model, strict=True)] == [
        not (damage and number == 1) for number in range(len(first.model))
    ]
    assert bool(written) == damage


def test_what_the_guard_has_lowered_leaves_less_momentum_and_the_same_step(tmp_path: Path, make_run) -> None:
    """Over the records of a pass with the same learning rate that was not lowered, which must not be taken."""
    theta = {"a": np.ones((40, 5), np.float32)}
    run, updates = make_run(Store(str(tmp_path)), theta, {"s": ({"a": theta["a"] + np.float32(0.1)}, 10)})
    server = Server(optimizer="nesterov", lr=0.35, momentum=0.9)
    small = Limits(shard_bytes=200)
    found = [aggregate(run, 1, updates, server, limits=small, lr_scale=factor) for factor in (1.0, 0.5)]
    assert len(found[0].model) > 1 and model_sha256(found[0].model) == model_sha256(found[1].model)
    readers = [TensorReader(run.store, run.round_dir(1), result.optimizer) for result in found]
    whole, half = (np.concatenate([c.copy() for c in reader.chunks("momentum.a", 9)]) for reader in readers)
    assert (half == whole / 2).all() and whole.all()


def test_a_record_whose_answer_was_lost_keeps_its_files(
    tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the store, although its writer saw the store as unreachable: another coordinator may use it."""
    theta = {"a": np.ones((40, 5), np.float32)}
    run, updates = make_run(Store(str(tmp_path)), theta, {"s": ({"a": theta["a"] + np.float32(0.1)}, 10)})
    plain = Store.create

    def create(store: Store, path: str, data: bytes) -> None:
        plain(store, path, data)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(Store, "create", create)
    with pytest.raises(StoreUnavailable):
        aggregate(run, 1, updates, Server(), limits=Limits(shard_bytes=200))
    records = list((tmp_path / run.round_dir(1) / "finished").rglob("*.json"))
    assert len(records) == 1
    for entry in ShardRecord.model_validate_json(records[0].read_bytes()).files:
        run.store.check(entry, run.round_dir(1))


def test_changes_whose_products_overflow_are_no_error(tmp_path: Path, make_run) -> None:
    """Their pairs have no cosine, and their shards no record, which could not express that."""
    theta = {name: np.ones(300, np.float32) for name in "abcd"}
    sites = {s: ({n: v + np.float32(size) for n, v in theta.items()}, 10) for s, size in (("x", 0.1), ("y", 5e19))}
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    result = aggregate(run, 1, updates, Server(), limits=Limits(shard_bytes=1200, threads=0))
    assert len(result.model) == 4 and result.norms["delta_norm/y"] == pytest.approx(5e19 * 1200**0.5)
    assert not any(name.startswith("cosine_pair/") for name in result.norms)
    assert run.store.ls(f"{run.round_dir(1)}/finished") == []
