"""In the limits of its settings a tree is what is known already: hierarchical and flat averaging, one member."""

from typing import Any

import numpy as np
import pytest
import yaml

from photon_core.model.key_layers import names_in
from photon_core.run.run import Run
from photon_core.tensors.reader import TensorReader
from photon_core.update.codecs.lossless import decode
from schemas.manifests import FileEntry
from tests.played import Play, Played, edit, tensors

Arrays = dict[str, np.ndarray]
AVERAGING = {"optimizer": "fedavg", "lr": 1.0}


def without_key_layers(**more: Any) -> dict[str, Any]:
    return {"worldlm": {"key_layers": 0, **more}}


def model(run: Run, t: int) -> Arrays:
    manifest = run.round(t)
    assert manifest is not None
    return tensors(run, run.files_dir(t), manifest.model)


def trained(run: Run, t: int) -> dict[str, tuple[Arrays, int]]:
    """Member -> its parameters after round t's training, and their tokens; of a model without key layers."""
    manifest, theta = run.round(t), model(run, t - 1)
    assert manifest is not None
    found = {}
    for name, ref in sorted(manifest.updates.items()):
        update = run.update(t, name, ref.attempt)
        assert update is not None
        changes = flat(run, run.site_dir(t, name, ref.attempt), update.files)
        after = {n: decode(a.reshape(-1), changes[n]).reshape(a.shape) for n, a in theta.items()}
        found[name] = after, update.tokens
    return found


def flat(run: Run, folder: str, files: list[FileEntry]) -> Arrays:
    with TensorReader(run.store, folder, files) as reader:
        return {name: np.concatenate([c.copy() for c in reader.chunks(name, 1 << 20)]) for name in reader.tensors}


def mean(models: list[tuple[Arrays, int]]) -> Arrays:
    """The mean weighted by tokens: w_1 - sum_i (n_i / n) (w_1 - w_i), in float32 and in the order given."""
    (first, _), *others = models
    total = sum(tokens for _, tokens in models)
    found = {}
    for name, values in first.items():
        change = np.zeros_like(values)
        for other, tokens in others:
            change += np.float32(tokens / total) * (values - other[name])
        found[name] = values - change
    return found


def mean64(models: list[tuple[Arrays, int]]) -> Arrays:
    """The same as published, sum_i n_i w_i / n, in float64."""
    total = sum(tokens for _, tokens in models)
    names = models[0][0]
    return {n: sum(tokens * one[n].astype(np.float64) for one, tokens in models) / total for n in names}


def equal(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def near(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[name], b[name], rtol=0, atol=1e-6) for name in a)


def test_without_key_layers_and_by_tokens_it_is_hierarchical_averaging(play: Play) -> None:
    """HierFAVG (Liu et al. 2020, arXiv 1905.06641): every second mean at the edge is followed by one of all."""
    rounds = 2
    tree = play(
        root=without_key_layers(weights="tokens") | {"server": AVERAGING},
        region=without_key_layers(weights="tokens", rounds=rounds),
    )
    north = tree.file.with_name("north.yaml")
    sites = yaml.safe_load(north.read_text())["sites"]
    edit(north, sites=[sites[0], sites[1] | {"steps": 1}])
    tree.play(2)
    cloud = model(tree.run(), 0)
    for t in 1, 2:
        edges = []
        for region in "north", "south":
            run, last, edge, tokens = tree.run(region), t * (1 + rounds), cloud, 0
            for n in range(last - rounds + 1, last + 1):
                assert equal(model(run, n - 1), edge), "every client takes the model of its edge"
                clients = list(trained(run, n).values())
                edge = mean(clients)
                assert near(edge, mean64(clients))
                tokens += sum(count for _, count in clients)
            assert equal(model(run, last), edge)
            edges.append((edge, tokens))
        assert edges[0][1] < edges[1][1], "unequal weights"
        cloud = mean(edges)
        assert equal(model(tree.run(), t), cloud) and near(cloud, mean64(edges))


def test_equal_regions_of_one_round_are_flat_averaging(play: Play) -> None:
    tree = play(root=without_key_layers() | {"server": AVERAGING}, region=without_key_layers())
    data = yaml.safe_load(tree.file.read_text())
    del data["federations"]
    files = [tree.file.with_name(f"{name}.yaml") for name in ("north", "south")]
    data["sites"] = [site for file in files for site in yaml.safe_load(file.read_text())["sites"]]
    other = tree.file.with_name("flat.yaml")
    other.write_text(yaml.safe_dump(data | {"store": "store-flat"}, sort_keys=False))
    one, all_sites = Played(other), tree.play()
    found = one.play()
    assert {ref.weight for ref in found.updates.values()} == {1 / 4}
    assert {ref.weight for ref in all_sites.updates.values()} == {1 / 2}
    assert near(model(one.run(), 1), model(tree.run(), 1))
    assert not near(model(one.run(), 1), model(one.run(), 0))


def test_one_member_gives_its_backbone_and_pulls_at_the_key_layers(play: Play) -> None:
    tree = play(regions={"north": ("a",)}, region={"worldlm": {"rounds": 2}})
    tree.play(2)
    root, north, keys = tree.run(), tree.run("north"), names_in(tree.chain()[0].key_layers)
    assert keys
    for t in 1, 2:
        before, after, member = model(root, t - 1), model(root, t), model(north, 3 * t)
        for name, values in after.items():
            if name not in keys:
                assert np.array_equal(values, member[name]), name
                continue
            low, high = np.minimum(before[name], member[name]), np.maximum(before[name], member[name])
            assert ((low - 2e-7 <= values) & (values <= high + 2e-7)).all(), "between its own and the member's"
            assert not np.array_equal(values, before[name]) and not np.array_equal(values, member[name])


def test_equal_rows_leave_every_key_layer_as_it_is(play: Play) -> None:
    tree = play(root={"rounds": {"count": 2}}, region={"worldlm": {"rounds": 2}})
    tree.step = 0.0
    tree.play(2)
    for path in (), ("north",), ("south",):
        run, rounds = tree.run(*path), tree.chain(*path)
        assert all(equal(model(run, m.round), model(run, 0)) for m in rounds), "to the bit"
        weights = [found.weights for m in rounds for found in m.attention.values()]
        assert weights and all(max(one) < 1 for one in weights)


@pytest.mark.parametrize(
    "noise",
    [
        {"update": {"clip_norm": 0.5, "noise_multiplier": 0.5}},
        {"update": {"clip_norm": 0.5}, "server": {"noise_multiplier": 0.5, "weights": "uniform"}},
    ],
)
def test_noise_in_one_region_does_not_reach_another_s_contribution(play: Play, noise: dict[str, Any]) -> None:
    alone = {"worldlm": {"residuals": "off", "rounds": 2}}
    quiet, noisy = (play(root={"worldlm": {"residuals": "off"}}, region=alone) for _ in range(2))
    edit(noisy.file.with_name("north.yaml"), **noise)
    quiet.play()
    noisy.play()

    def contribution(tree: Played, name: str) -> Any:
        update = tree.run().update(1, name, 1)
        assert update is not None
        hashes = [file.sha256 for file in (*update.files, *update.key_layers)]
        return hashes, update.tokens, update.steps, update.metrics, update.entry, update.noise

    assert contribution(noisy, "south") == contribution(quiet, "south")
    mine, theirs = contribution(noisy, "north"), contribution(quiet, "north")
    assert mine[0] != theirs[0] and mine[-1] > theirs[-1] == 0
