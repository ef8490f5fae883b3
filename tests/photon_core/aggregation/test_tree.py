"""Regions first, then the whole: the flat result to float32 rounding, and every step found done after a kill."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.aggregation.aggregate import Aggregate, aggregate, base_of, sources_of
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Pass
from photon_core.aggregation.engine.streaming import run_pass
from photon_core.aggregation.round import aggregate_region
from photon_core.aggregation.rules import Rules, model_rule
from photon_core.aggregation.tree import Tree, regions
from photon_core.aggregation.weights import Shares
from photon_core.errors import PhotonError, UpdateRejected
from photon_core.hashing import sha256_bytes
from photon_core.run.garbage import Rule, look
from photon_core.run.members import ANY_WORK
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from schemas.manifests import FileEntry, RoundManifest, UpdateManifest
from schemas.sections.aggregation import Aggregation
from schemas.sections.server import Server
from tests.federations import sample

Arrays = dict[str, np.ndarray]
MakeRun = Callable[..., tuple[Run, dict[str, UpdateManifest]]]
SHAPES = {"b.weight": (13, 7), "a.bias": (5,), "scale": (), "none": (0, 3), "z": (1, 50)}
GROUPS = {1: ["s0", "s1", "s2"], 2: ["s3", "s4"], 3: ["s5", "s6"]}


def arrays(seed: int, spread: float = 1.0, around: Arrays | None = None) -> Arrays:
    rng = np.random.default_rng(seed)
    noise = {n: np.asarray(spread * rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}
    return {n: np.asarray(noise[n] + around[n], np.float32) for n in SHAPES} if around else noise


def flat(run: Run, files: list[FileEntry], folder: str = "") -> np.ndarray:
    with TensorReader(run.store, folder or run.round_dir(1), files) as reader:
        return np.concatenate([c.copy() for name in sorted(SHAPES) for c in reader.chunks(name, 11)])


@pytest.fixture
def theta() -> Arrays:
    return arrays(0)


@pytest.fixture
def sites(theta: Arrays) -> dict[str, tuple[Arrays, int]]:
    return {f"s{k}": (arrays(k + 1, 0.1, theta), 100 * (k + 1)) for k in range(7)}


def check_equal(run: Run, tree: Aggregate, whole: Aggregate) -> None:
    assert tree.weights == whole.weights
    assert np.allclose(flat(run, tree.model), flat(run, whole.model), rtol=0, atol=1e-6)
    expected = {name: value for name, value in whole.norms.items() if not name.startswith("cosine_pair/")}
    assert tree.norms.keys() == expected.keys()  # no region reads the sites of another
    for name, value in expected.items():
        assert tree.norms[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    "server",
    [
        Server(),
        Server(optimizer="nesterov", lr=0.7, momentum=0.9),
    ],
)
def test_the_flat_result_and_its_norms(
    store: Store, make_run: MakeRun, theta: Arrays, sites: Any, server: Server
) -> None:
    run, updates = make_run(store, theta, sites)
    result = Tree(run, 1, GROUPS, updates, server).aggregate()
    check_equal(run, result, aggregate(run, 1, updates, server))
    assert len(result.optimizer) == (server.optimizer == "nesterov")
    assert list(result.partials.values()) == [sha256_bytes(run.store.read(path)) for path in result.partials]


@pytest.mark.parametrize(
    "server", [Server(weights="uniform"), Server(weights="fednova"), Server(mean="norm_bounded", norm_bound=0.8)]
)
def test_every_mean_that_is_linear_in_the_sites(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, server: Server
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    norms = aggregate(run, 1, updates, Server()).norms
    for number, (site, update) in enumerate(updates.items(), 1):
        metrics = {**update.metrics, "delta_norm": norms[f"delta_norm/{site}"]}
        updates[site] = update.model_copy(update={"steps": number, "metrics": metrics})
    whole = aggregate(run, 1, updates, server)
    assert not np.allclose(
        flat(run, whole.model), flat(run, aggregate(run, 1, updates, Server()).model), atol=1e-3
    )
    check_equal(run, Tree(run, 1, GROUPS, updates, server).aggregate(), whole)


def test_means_that_are_not_linear_are_refused(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    with pytest.raises(PhotonError, match="a median mean needs every site in one place"):
        Tree(run, 1, GROUPS, updates, Server(mean="median"))


def test_a_region_s_mean_is_an_update_of_its_sites(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    place, partial = Tree(run, 1, GROUPS, updates, Server()).partial(2)
    assert place.path.startswith("run/rounds/000001/regions/0002/")
    base = run.round(0)
    assert base and partial.base_sha256 == base.model_sha256 and partial.previous_sha256 == run.round_sha256(0)
    assert (partial.tokens, partial.steps, partial.metrics) == (900, 1, {"train_loss": 1.0})
    assert {site: (ref.tokens, ref.weight) for site, ref in partial.parts.items()} == {
        "s3": (400, 4 / 9),
        "s4": (500, 5 / 9),
    }
    assert [ref.sha256 for ref in partial.parts.values()] == [run.update_sha256(1, s, 1) for s in ("s3", "s4")]
    assert set(partial.norms) == {"delta_norm/s3", "delta_norm/s4"}
    only = aggregate(run, 1, {s: updates[s] for s in ("s3", "s4")}, Server())
    assert model_sha256(partial.files) == model_sha256(only.model), "bit for bit the mean of its sites"


def test_a_federation_of_federations(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    """A mean of means is an update like any other, as deep as one likes."""
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    tree = Tree(run, 1, GROUPS, updates, Server())
    found = {partial.site: (place.path, partial) for place, partial in map(tree.partial, GROUPS)}
    lower = {name: found[name] for name in ("+0001", "+0002")}
    base, updates_of = base_of(run, 1), {name: partial for name, (_, partial) in lower.items()}
    folders = {name: folder for name, (folder, _) in lower.items()}
    sources = sources_of(run, base, 1, updates_of, ANY_WORK, folders)
    rules = Rules(model_rule(Server(), Shares(Server(), updates_of)))
    folder = "run/rounds/000001/continent"
    middle = run_pass(Pass(run, 1, base, sources, rules, Server(), folder), DEFAULT_LIMITS)
    five = aggregate(run, 1, {s: updates[s] for s in GROUPS[1] + GROUPS[2]}, Server())
    assert np.allclose(flat(run, middle.model, folder), flat(run, five.model), atol=4e-7)


def test_killed_between_any_two_steps_it_goes_on(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    expected = aggregate(run, 1, updates, Server())

    def files() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in tmp_path.rglob("regions/**/*") if p.is_file()}

    def again() -> Tree:
        return Tree(Run(run.store, "run"), 1, GROUPS, updates, Server())  # another process knows only the store

    assert not files()
    seen: dict[str, int] = {}
    for step in [lambda n=n: again().partial(n) for n in GROUPS] + [
        lambda n=n: again().compare(n) for n in GROUPS
    ]:
        for _ in range(2):
            step()
        now = files()
        assert len(now) > len(seen) and all(now[path] == seen[path] for path in seen), "done once"
        seen = now
    check_equal(run, again().aggregate(), expected)
    assert files() == seen


def test_a_partial_that_was_cut_off_is_an_orphan(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    place, _ = Tree(run, 1, GROUPS, updates, Server()).partial(1)
    folder = place.path
    (tmp_path / folder / "partial.json").unlink()
    fresh = Run(run.store, "run")
    found, partial = Tree(fresh, 1, GROUPS, updates, Server()).partial(1)
    assert found == place and fresh.store.exists(f"{folder}/{partial.files[0].path}")
    assert len(list((tmp_path / folder / "model").iterdir())) == 2


@pytest.mark.parametrize("kind", ["nan", "damaged"])
def test_a_bad_update_is_named_and_only_its_region_done_again(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, kind: str
) -> None:
    if kind == "nan":
        sites["s4"][0]["z"][0, 7] = np.nan
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    if kind == "damaged":
        path = tmp_path / run.site_dir(1, "s4", 1) / updates["s4"].files[0].path
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UpdateRejected) as bad:
        Tree(run, 1, GROUPS, updates, Server()).aggregate()
    assert bad.value.site == "s4"
    first = Tree(run, 1, GROUPS, updates, Server()).partial(1)
    del updates["s4"]
    tree = Tree(run, 1, GROUPS, updates, Server())
    check_equal(run, tree.aggregate(), aggregate(run, 1, updates, Server()))
    assert tree.partial(1) == first
    assert list(tree.partial(2)[1].parts) == ["s3"]


@pytest.mark.parametrize(
    ("server", "change", "reason"),
    [
        (Server(), {"tokens": 0}, "it claims 0 trained tokens"),
        (Server(weights="fednova"), {"steps": 0}, "it claims 0 trained steps"),
        (
            Server(mean="norm_bounded"),
            {"metrics": {"train_loss": 1.0, "delta_norm": np.nan}},
            "'delta_norm' is nan",
        ),
    ],
)
def test_manifests_are_looked_at_before_their_numbers_are_used(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any, server: Server, change: Any, reason: str
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    updates = {s: u.model_copy(update={"metrics": {**u.metrics, "delta_norm": 3.0}}) for s, u in updates.items()}
    updates["s3"] = updates["s3"].model_copy(update=change)
    del updates["s4"]  # its region is of nobody else
    with pytest.raises(UpdateRejected, match=reason) as bad:
        Tree(run, 1, GROUPS, updates, server).aggregate()
    assert bad.value.site == "s3"


def test_a_region_whose_second_look_meets_a_damaged_mean_says_so(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    named = [{"name": name, "streams": [{"name": "s", "source": "x.txt"}]} for name in sites]
    federation = sample(run="run", sites=named, aggregation={"tree_above": 1, "fan_out": 4})
    sampled = list(updates)
    assert aggregate_region(run, federation, 1, sampled, 1) == {}
    place, partial = Tree(run, 1, regions(federation.aggregation, sampled), updates, Server()).partial(1)
    path = tmp_path / place.path / partial.files[0].path
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UpdateRejected, match=r"'\+0001' rejected: .* does not have the blake3"):
        aggregate_region(run, federation, 1, sampled, 2, second_look=True)


def test_a_region_without_updates_is_passed_over(
    tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any
) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    for site in GROUPS[2]:
        del updates[site]
    result = Tree(run, 1, GROUPS, updates, Server()).aggregate()
    check_equal(run, result, aggregate(run, 1, updates, Server()))
    assert len(result.partials) == 2


def test_a_damaged_mean_is_made_anew(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    place, partial = Tree(run, 1, GROUPS, updates, Server()).partial(2)
    path = tmp_path / place.path / partial.files[0].path
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    tree = Tree(run, 1, GROUPS, updates, Server())
    check_equal(run, tree.aggregate(), aggregate(run, 1, updates, Server()))
    assert tree.partial(2)[0] == replace(place, attempt=2)
    check_equal(run, Tree(run, 1, GROUPS, updates, Server()).aggregate(), aggregate(run, 1, updates, Server()))


def test_means_so_large_that_theirs_is_not_finite_name_a_site(tmp_path: Path, make_run: MakeRun) -> None:
    sites = {"b": ({"w": np.float32([3e38, 1])}, 1), "c": ({"w": np.float32([-3.4e38, 1])}, 1)}
    run, updates = make_run(Store(str(tmp_path)), {"w": np.zeros(2, np.float32)}, sites)
    groups = {1: ["b"], 2: ["c"]}
    with pytest.raises(UpdateRejected) as bad:
        Tree(run, 1, groups, updates, Server()).aggregate()
    assert bad.value.site == "c"


def test_regions_of_the_sampled() -> None:
    names = [f"site-{k:02d}" for k in range(10)]
    assert regions(Aggregation(), names) == {}
    assert regions(Aggregation(tree_above=10, fan_out=4), names) == {}
    found = regions(Aggregation(tree_above=9, fan_out=4), names[::-1])
    assert [len(sites) for sites in found.values()] == [3, 3, 4]
    assert [site for sites in found.values() for site in sites] == names


def test_garbage_collection_knows_partials(tmp_path: Path, make_run: MakeRun, theta: Arrays, sites: Any) -> None:
    run, updates = make_run(Store(str(tmp_path)), theta, sites)
    result = Tree(run, 1, GROUPS, updates, Server()).aggregate()
    manifest = RoundManifest(
        **{"run": "run", "round": 1, "model": result.model, "model_sha256": model_sha256(result.model)},
        **{"federation_sha256": "", "created": "", "versions": {}},
        partials=result.partials,
        previous_sha256=run.round_sha256(0),
    )
    run.commit_round(manifest)
    assert look(run, Rule(last=2), now=1e12).files == []
    run.commit_round(
        manifest.model_copy(update={"round": 2, "partials": {}, "previous_sha256": run.round_sha256(1)})
    )
    gone = [file.path for file in look(run, Rule(last=1), now=1e12).rounds[1]]
    assert sum("/regions/" in path for path in gone) == 3
