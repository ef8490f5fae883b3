"""Stores of every kind (S3 over real HTTP on loopback), and runs with updates to aggregate."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs import lossless
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from tests.federations import updates_of
from tests.s3_server import credentials, serve


@pytest.fixture(scope="session")
def careless_s3_endpoint() -> Iterator[str]:
    with credentials():
        yield from serve(strip=True)


def s3_store(endpoint: str, **options: Any) -> Store:
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=endpoint).mkdir(bucket)
    return Store(f"s3://{bucket}/prefix", endpoint_url=endpoint, **options)


@pytest.fixture
def s3(s3_endpoint: str) -> Store:
    return s3_store(s3_endpoint)


@pytest.fixture
def careless_s3(careless_s3_endpoint: str) -> Callable[..., Store]:
    return lambda **options: s3_store(careless_s3_endpoint, **options)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """The same tests on every kind of store."""
    if request.param == "local":
        return Store(str(request.getfixturevalue("tmp_path") / "store"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return request.getfixturevalue("s3")


def _write(store: Store, folder: str, stem: str, arrays: dict[str, Any], max_bytes: int) -> list[FileEntry]:
    names = {"float32": "F32", "int32": "I32"}
    tensors = {n: TensorEntry(dtype=names[str(a.dtype)], shape=a.shape) for n, a in arrays.items()}
    with ShardWriter(store, folder, stem, shard_plan(tensors, max_bytes)) as writer:
        for name in writer.order:
            if arrays[name].size:
                writer.write(name, arrays[name].reshape(-1))
        return writer.close()


@pytest.fixture
def make_run() -> Callable[..., tuple[Run, dict[str, UpdateManifest]]]:
    """(store, theta, {site: (theta_k, tokens)}) -> a run with round 0 and updates for round 1, committed."""

    def make(
        store: Store, theta: dict[str, Any], sites: dict[str, tuple[dict[str, Any], int]], max_bytes: int = 1 << 20
    ) -> tuple[Run, dict[str, UpdateManifest]]:
        run = Run(store, "run")
        files = _write(store, run.round_dir(0), "model/", theta, max_bytes)
        base = model_sha256(files)
        common: dict[str, Any] = {"run": "run", "versions": {}}
        run.commit_round(
            RoundManifest(round=0, model_sha256=base, model=files, federation_sha256="", created="", **common)
        )
        for site, (theta_k, tokens) in sites.items():
            changes = {name: lossless.encode(theta[name], theta_k[name]) for name in theta}
            update = UpdateManifest(
                round=1,
                site=site,
                attempt=1,
                base_sha256=base,
                codec="float32",
                files=_write(store, run.site_dir(1, site, 1), "", changes, max_bytes),
                tokens=tokens,
                steps=1,
                metrics={"train_loss": 1.0},
                data_sha256="",
                previous_sha256=run.round_sha256(0),
                **common,
            )
            run.commit_update(update)
        return run, updates_of(run, 1, *sites)

    return make
