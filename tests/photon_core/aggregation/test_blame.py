"""What may be the machine's fault or the store's is no site's; what fails again at one site's objects alone is."""

import errno
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.candidate import RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.round import aggregate_round
from photon_core.errors import StoreUnavailable
from photon_core.run.garbage import Rule, look, remove
from photon_core.run.run import ATTEMPTS_LIMIT, Run, last_true, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.federation import Federation
from schemas.manifests import RoundManifest, TensorEntry, UpdateManifest
from schemas.sections.server import Server
from tests.photon_core.hostile_cases import EVIL, HONEST
from tests.photon_core.hostile_updates import MODES, honest_update, make_run, settings, shard
from tests.s3_server import FaultProxy

MODE = MODES["float32, flat, on a disk"]
ALL = sorted((*HONEST, EVIL))


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    """Limit the open files to those that are open now and `most` more; with 0, to three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(list(Path("/proc/self/fd").iterdir())) if most else 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(store: Store) -> tuple[Run, Federation]:
    federation = Federation.model_validate(settings(MODE, store.url, 3))
    run = make_run(store, federation, MODE)
    for site in ALL:
        run.commit_update(honest_update(run, 1, site, MODE))
    return Run(store, "run"), federation


def test_no_site_is_blamed_where_no_descriptor_is_left(tmp_path: Path) -> None:
    run, federation = opened(Store(str(tmp_path)))
    run.round(0)
    with descriptors(0), pytest.raises(OSError) as met:
        aggregate_round(run, federation, 1, ALL, {})
    assert met.value.errno == errno.EMFILE
    assert sorted(aggregate_round(run, federation, 1, ALL, {}).updates) == ALL


def test_a_store_that_is_away_is_nobodys_fault_and_one_sites_object_is_its_own(
    s3_proxy: FaultProxy, s3_bucket: str
) -> None:
    run, federation = opened(Store(f"s3://{s3_bucket}/x", endpoint_url=s3_proxy.url, retry_seconds=0.2))
    s3_proxy.fault = lambda request: "503" if request.method == "GET" else None
    with pytest.raises(StoreUnavailable):
        aggregate_round(Run(run.store, "run"), federation, 1, ALL, {})
    for part in ("update.json", ".safetensors"):
        at = f"/sites/{EVIL}/0001/"
        s3_proxy.fault = lambda r, at=at, part=part: "503" if at in r.path and part in r.path else None  # type: ignore[misc]
        candidate = aggregate_round(Run(run.store, "run"), federation, 1, ALL, {})
        assert sorted(candidate.updates) == list(HONEST)
        assert "the server failed in" in candidate.left_out[EVIL]


def test_files_in_another_order_than_the_models_do_not_take_all_descriptors(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "run")
    names = [f"t{number:03d}" for number in range(400)]
    theta = {name: np.ones(2, np.float32) for name in names}
    model = [shard(run.store, run.round_dir(0), theta, "F32")]
    base = RoundManifest(
        run="run", round=0, model_sha256=model_sha256(model), model=model, federation_sha256="", created="",
        versions={},
    )  # fmt: skip
    run.commit_round(base)
    files = []
    for first in range(200):
        pair = {name: TensorEntry(dtype="I32", shape=(2,)) for name in (names[399 - first], names[first])}
        with ShardWriter(run.store, run.site_dir(1, "b", 1), f"{first}-", shard_plan(pair)) as writer:
            for name in writer.order:
                writer.write(name, np.zeros(2, np.int32))
            files += writer.close()
    update = UpdateManifest(
        run="run", round=1, site="b", attempt=1, base_sha256=base.model_sha256, codec="float32", files=files,
        tokens=1, steps=1, metrics={"train_loss": 1.0}, data_sha256="", versions={},
        previous_sha256=run.round_sha256(0),
    )  # fmt: skip
    with descriptors(128):
        assert aggregate(run, 1, {"b": update}, Server()).model[0].sha256 == model[0].sha256


def test_few_questions_find_the_last_of_many_attempts() -> None:
    for last in (1, 2, 3, 7, 100, 5000, ATTEMPTS_LIMIT):
        asked: list[int] = []

        def holds(attempt: int, last: int = last, asked: list[int] = asked) -> bool:
            asked.append(attempt)
            return attempt <= last

        assert last_true(holds, 1, ATTEMPTS_LIMIT) == last
        assert len(asked) <= 2 * last.bit_length() + 1


def test_a_thousand_attempts_or_far_rounds_cost_few_looks(tmp_path: Path) -> None:
    run, federation = opened(Store(str(tmp_path)))
    for attempt in range(2, 1001):
        path = tmp_path / run.site_dir(1, EVIL, attempt) / "update.json"
        path.parent.mkdir()
        path.write_bytes(b"{}")
    for t in range(2, 1001):
        (tmp_path / run.round_dir(t)).mkdir()
    looks = []

    class Counting(Store):
        def exists(self, path: str) -> bool:
            looks.append(path)
            return super().exists(path)

        def read(self, path: str, limit: int | None = None) -> bytes:
            looks.append(path)
            return super().read(path, limit)

    again = Run(Counting(str(tmp_path)), "run")
    assert again.latest() == 0
    assert again.committed_attempt(1, EVIL) == 1000
    assert len(looks) < 50
    assert EVIL in aggregate_round(again, federation, 1, ALL, {}).left_out


def test_garbage_collection_and_status_pass_over_what_strangers_leave(tmp_path: Path) -> None:
    """Names that are none of a store's, manifests that are none or cannot be read; what these may cover stays."""
    run, federation = opened(Store(str(tmp_path)))
    commit(run, federation, aggregate_round(run, federation, 1, list(HONEST), {}), RoundLog(ALL))
    rounds, ours = tmp_path / "run/rounds", f"00001-of-00001-{'0' * 16}.safetensors"
    left = ["sites/x\ny/0001/update.json", "sites/ü/0001/update.json", "sites/x/0001/update.json"]
    left += [f"sites/x/0001/{ours}", "sites/x/0002/update.json", "bad\udcff.safetensors"]
    left += [f"regions/0001/{'0' * 16}/0001/partial.json"]
    for name in left:
        path = rounds / "000001" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    unread = rounds / f"000001/sites/{EVIL}/0001/update.json"
    unread.unlink()
    unread.symlink_to(unread)
    (rounds / "000777").mkdir()
    (rounds / "000777/round.json").write_bytes(b"{}")
    found = look(Run(run.store, "run"), Rule(1, None, 0.0), now=time.time() + 1e6)
    of_x = [file.path for file in found.orphans if "/x/" in file.path]
    assert of_x == [f"run/rounds/000001/sites/x/0001/{ours}"]
    remove(run, found)


def test_means_of_regions_and_cosines_that_are_none_are_made_again(tmp_path: Path) -> None:
    mode = MODES["bfloat16, moments, tree, on a disk"]
    federation = Federation.model_validate(settings(mode, str(tmp_path), 3))
    run = make_run(Store(str(tmp_path)), federation, mode)
    for site in ALL:
        run.commit_update(honest_update(run, 1, site, mode))
    right = aggregate_round(run, federation, 1, ALL, {}).result
    wrote = sorted([*tmp_path.rglob("partial.json"), *tmp_path.rglob("cosines-*.json")])
    assert len(wrote) == 4
    first = json.loads(next(tmp_path.rglob("partial.json")).read_bytes())
    huge = first | {"files": [first["files"][0] | {"bytes": 2**50}]}
    for content in (b"{}", b"[" * 9000, json.dumps(first | {"norms": {}}).encode(), json.dumps(huge).encode()):
        for path in wrote:
            path.unlink()
            path.write_bytes(content)
        again = aggregate_round(Run(run.store, "run"), federation, 1, ALL, {}).result
        assert ([f.sha256 for f in again.model], again.norms) == ([f.sha256 for f in right.model], right.norms)
