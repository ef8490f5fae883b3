"""Rules per tensor: each tensor by its own, in any pieces; and a pass that looks at no single member."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.aggregate import aggregate, base_of, sources_of
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits, Pass, Result
from photon_core.aggregation.engine.streaming import run_pass
from photon_core.aggregation.noise import Noise
from photon_core.aggregation.rules import Median, Rule, Rules, TrimmedMean, WeightedMean, model_rule
from photon_core.aggregation.weights import Shares
from photon_core.errors import NotFinite
from photon_core.run.members import ANY_WORK
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from schemas.manifests import UpdateManifest
from schemas.sections.server import Server
from tests.photon_core.aggregation.test_aggregate import SHAPES, Arrays, arrays, load

MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
NESTEROV = Server(optimizer="nesterov", lr=0.7, momentum=0.9)
SERVERS = [Server(), NESTEROV, Server(mean="median"), Server(mean="trimmed", trim=0.3), Server(weights="fednova")]
SMALL = Limits(shard_bytes=200)


@pytest.fixture
def theta() -> Arrays:
    return arrays(0)


@pytest.fixture
def sites(theta: Arrays) -> dict[str, tuple[Arrays, int]]:
    return {f"s{k}": (arrays(k + 1, 0.1, theta), 100 * (k + 1)) for k in range(5)}


def one_pass(run: Run, updates: dict[str, UpdateManifest], server: Server, rules: Rules | None = None) -> Pass:
    base = base_of(run, 1)
    sources = sources_of(run, base, 1, updates, ANY_WORK)
    rules = rules or Rules(model_rule(server, Shares(server, updates)))
    return Pass(run, 1, base, sources, rules, server, run.round_dir(1))


def test_every_tensor_by_its_own_rule(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    """As the same tensor of a pass in which that rule is everybody's, bit for bit, however the pieces are cut."""
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    own: dict[str, Rule] = {
        "b.weight": Median(),
        "z": WeightedMean.fixed({"s0": 0.1, "s1": 0.2, "s2": 0.0, "s3": 0.3, "s4": 0.1}),
        "scale": TrimmedMean(0.3),
    }
    rest = model_rule(NESTEROV, Shares(NESTEROV, updates))
    alone = {
        name: (result := run_pass(one_pass(run, updates, NESTEROV, Rules(own.get(name, rest))), DEFAULT_LIMITS))
        and {**load(run, 1, result.model), **load(run, 1, result.optimizer)}
        for name in SHAPES
    }
    hashes = set()
    for limits in (Limits(piece=1, threads=0), Limits(piece=10, threads=3), SMALL):
        result = run_pass(one_pass(run, updates, NESTEROV, Rules(rest, own)), limits)
        found = {**load(run, 1, result.model), **load(run, 1, result.optimizer)}
        for name in SHAPES:
            for key in (name, f"momentum.{name}"):
                assert found[key].tobytes() == alone[name][key].tobytes(), key
        hashes.add(b"".join(found[key].tobytes() for key in sorted(found)))
    assert len(hashes) == 1
    assert not np.allclose(found["z"], alone["a.bias"]["z"])


def test_noise_is_an_element_s_own_however_the_pieces_are_cut(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    """Records of a pass without it are not taken."""
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    expected = load(run, 1, run_pass(one_pass(run, updates, Server()), SMALL).model)
    noise, rest = Noise(0.5, "work", b"k" * 32), model_rule(Server(), Shares(Server(), updates))
    for name, values in expected.items():
        noise.add(name, 0, values.reshape(-1))
    for limits in (Limits(piece=1, threads=0), Limits(piece=10, threads=3), SMALL, DEFAULT_LIMITS):
        result = run_pass(one_pass(run, updates, Server(), Rules(rest, noise=noise)), limits)
        found = load(run, 1, result.model)
        assert all(found[name].tobytes() == values.tobytes() for name, values in expected.items())


def test_records_of_other_rules_are_not_taken(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    plain = one_pass(run, updates, Server())
    first = run_pass(plain, SMALL)
    other = run_pass(replace(plain, rules=Rules(plain.rules.rest, {"z": Median()})), SMALL)
    assert len(first.model) > 1 and model_sha256(first.model) != model_sha256(other.model)
    assert run_pass(plain, SMALL).model == first.model, "its own are"


@pytest.mark.parametrize("server", SERVERS)
def test_without_a_look_at_members_the_model_is_the_same(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, server: Server
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    expected = aggregate(run, 1, updates, server, limits=SMALL)
    unseen = replace(one_pass(run, updates, server), look=False)

    def check(result: Result) -> None:
        assert model_sha256(result.model) == model_sha256(expected.model)
        assert model_sha256(result.optimizer) == model_sha256(expected.optimizer)
        whole = {name: value for name, value in expected.norms.items() if "/" not in name}
        assert result.norms == pytest.approx(whole, rel=1e-12) and result.norms.keys() == whole.keys()

    first, again = run_pass(unseen, SMALL), run_pass(unseen, SMALL)
    check(first)
    check(again)
    assert again.model == first.model, "finished shards are taken"


@pytest.mark.parametrize("rule", [WeightedMean((0.5, 0.5)), Median(), TrimmedMean(0.2)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_without_a_look_nobody_is_named(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, rule: Rule, bad: float
) -> None:
    changed = {site: {name: values + np.float32(0.1) for name, values in theta.items()} for site in "ab"}
    changed["b"]["z"][0, 7] = bad
    run, updates = make_run(Store(str(tmp_path)), theta, {site: (values, 1) for site, values in changed.items()})
    with pytest.raises(NotFinite, match="the mean of tensor 'z' holds NaN or Inf"):
        run_pass(replace(one_pass(run, updates, Server(), Rules(rule)), look=False), DEFAULT_LIMITS)
