"""Two rounds of models of odd shapes, in files cut and ordered oddly: a plain NumPy mean, and torch's own SGD."""

import uuid
from typing import Any

import numpy as np
import pytest
import torch

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from schemas.manifests import FileEntry
from schemas.sections.server import Server
from tests.photon_core.aggregation.test_aggregate import _update, commit, load

SHAPES: dict[str, tuple[int, ...]] = {
    **{"scale": (), "none": (0,), "none.3": (3, 0, 2), "one": (1,), "one.row": (1, 33), "column": (33, 1)},
    **{"wte.weight": (17, 3), "lm_head.weight": (17, 3), "conv": (2, 3, 1, 5), "bias": (129,)},
}
TIED = ("wte.weight", "lm_head.weight")
SIZES = [1, 90, 1 << 20]  # bytes of a shard: a row a file, some rows a file, all in one

Arrays = dict[str, np.ndarray]


def arrays(seed: int, spread: float, around: Arrays | None = None) -> Arrays:
    """Random tensors; the tied ones are equal."""
    random = np.random.default_rng(seed)
    found = {n: np.asarray(spread * random.standard_normal(s), np.float32) for n, s in SHAPES.items()}
    found = {n: np.asarray(v + around[n], np.float32) for n, v in found.items()} if around else found
    return {**found, TIED[1]: found[TIED[0]].copy()}


def dealt(files: list[FileEntry]) -> list[FileEntry]:
    """The files in another order: the parts of a tensor stay in theirs, with other tensors' between them."""
    hands: dict[str, list[FileEntry]] = {}
    for file in files:
        hands.setdefault(min(file.tensors), []).append(file)
    order, left = [], list(reversed(hands.values()))
    while left:
        order += [hand.pop(0) for hand in left]
        left = [hand for hand in left if hand]
    return order


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_rounds_are_the_mean_and_torch(make_run: Any, momentum: float) -> None:
    server = Server(optimizer="nesterov", lr=0.7, momentum=momentum)
    theta = arrays(0, 1.0)
    sites = {f"s{k}": (arrays(k + 1, 0.1, theta), 10 * k + 7) for k in range(4)}
    hashes = set()
    for size in SIZES:
        run, updates = make_run(Store(f"memory://{uuid.uuid4().hex}"), theta, sites, size)
        if size == 1:  # a file then holds rows of one tensor
            updates = {s: u.model_copy(update={"files": dealt(u.files)}) for s, u in updates.items()}
        arrived = {site: updates[site] for site in ("s2", "s0", "s3", "s1")}
        for chosen, out, threads, chunk in [(updates, 90, 0, 1), (arrived, 1, 3, 7), (arrived, 1 << 20, 2, None)]:
            result = aggregate(
                run, 1, chosen, server, limits=Limits(shard_bytes=out, threads=threads, piece=chunk)
            )
            hashes.add(tuple(values.tobytes() for values in load(run, 1, result.model).values()))
        commit(run, 1, result)
    assert len(hashes) == 1

    tensors = {n: torch.nn.Parameter(torch.from_numpy(v.copy())) for n, v in theta.items()}
    sgd = torch.optim.SGD(tensors.values(), lr=0.7, momentum=momentum, nesterov=momentum > 0)
    weights = np.array([tokens for _, tokens in sites.values()], np.float64)
    changes = {s: {n: theta_k[n] - theta[n] for n in SHAPES} for s, (theta_k, _) in sites.items()}
    step(sgd, tensors, changes, weights / weights.sum())
    theta_1 = check(run, 1, tensors)

    again = {s: arrays(k + 9, 0.1, theta_1) for k, s in enumerate(sites)}
    updates = {s: _update(run, 2, s, theta_1, theta_k) for s, theta_k in again.items()}
    result = aggregate(run, 2, updates, server, limits=Limits(shard_bytes=50))
    commit(run, 2, result)
    changes = {s: {n: theta_k[n] - theta_1[n] for n in SHAPES} for s, theta_k in again.items()}
    step(sgd, tensors, changes, np.full(4, 0.25))
    check(run, 2, tensors)


def step(sgd: Any, tensors: dict[str, Any], changes: dict[str, Arrays], weights: np.ndarray) -> None:
    """torch's step on the pseudo-gradient: less the mean change, as NumPy works it out in float64."""
    for name, tensor in tensors.items():
        mean = sum(
            w * change[name].astype(np.float64) for w, change in zip(weights, changes.values(), strict=True)
        )
        tensor.grad = torch.from_numpy(np.asarray(-mean, np.float32))
    sgd.step()


def check(run: Run, t: int, tensors: dict[str, Any]) -> Arrays:
    manifest = run.round(t)
    assert manifest and manifest.model_sha256 == model_sha256(manifest.model)
    found = load(run, t, manifest.model)
    for name, tensor in tensors.items():
        assert found[name].shape == SHAPES[name]
        assert np.allclose(found[name], tensor.detach().numpy(), rtol=0, atol=2e-6)
    assert found[TIED[0]].tobytes() == found[TIED[1]].tobytes()
    return found
