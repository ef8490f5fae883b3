"""Every node's model, as received and as trained: equal to what the node then really enters with, or has sent."""

from pathlib import Path

import numpy as np
import pytest

from photon_core.aggregation import fit
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.routing import residuals_for, send_down
from photon_core.errors import FederationError, PhotonError
from photon_core.export.model import NodeModel
from photon_core.export.node import find_node
from photon_core.export.states import node_model
from photon_core.run.garbage import Rule, look, remove
from photon_core.run.rollback import roll_back
from photon_core.run.run import forget_runs
from schemas.manifests import Residual, RoundManifest
from tests.conftest import merge
from tests.played import MODEL, Played, drawn, edit, tensors
from tests.worlds import write_world

Arrays = dict[str, np.ndarray]


def make(folder: Path, **more: dict[str, object]) -> Played:
    """A tree of the regions north (a, b) and south (c, d); a call has two rounds."""
    root, region = (merge({"model": MODEL}, more.get(key, {})) for key in ("root", "region"))
    return Played(write_world(folder / "world", root=root, region=merge({"worldlm": {"rounds": 2}}, region)))


def model(tree: Played, path: str | None, folder: Path, trained: bool = False, t: int | None = None) -> NodeModel:
    return node_model(find_node(tree.world, path), trained, t, folder)


def arrays(found: NodeModel) -> Arrays:
    with found.source.open() as source:
        return {name: source.array(name) for name in source.tensors}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def entries(tree: Played, name: str) -> list[RoundManifest]:
    return [manifest for manifest in tree.chain(name) if manifest.kind == "entry"]


def contents(residuals: list[Residual]) -> list[tuple[str, list[str], list[str]]]:
    """All but their places."""
    return [(one.layer, one.origin, [file.sha256 for file in one.files]) for one in residuals]


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_region_as_received_is_what_it_enters_its_next_round_with(tmp_path: Path) -> None:
    """With residuals that no round has sent yet, and nothing is written but to the folder."""
    tree = make(tmp_path)
    tree.play(2)
    before = files(tmp_path)
    found = {name: model(tree, name, tmp_path / "scratch" / name) for name in ("north", "south")}
    kept = {name: arrays(one) for name, one in found.items()}
    assert files(tmp_path) - before == files(tmp_path / "scratch")
    forget_runs()
    tree.play()
    received = [entries(tree, name)[-1].received for name in found]
    assert any(received), "a residual takes part"
    for name, one in found.items():
        entry, run = entries(tree, name)[-1], tree.run(name)
        assert one.source.sha256 == entry.model_sha256
        assert same(kept[name], tensors(run, run.files_dir(entry.round), entry.model))
        assert one.origin == "as received: the model with which it would enter round 3 of run `world`"


def test_a_region_that_has_entered_the_open_round_has_that_entry(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play()
    tree.fit(tree.world.federation, "north", 2)
    found = model(tree, "north", tmp_path / "scratch")
    assert found.source.sha256 == entries(tree, "north")[1].model_sha256
    assert found.origin == "as received: round 4 of run `north`, its entry into round 2 of run `world`"


def test_after_a_rollback_of_the_parent_a_region_receives_what_it_then_enters_with(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play(3)
    roll_back(tree.run(), tree.world.federation, 1)
    found = model(tree, "north", tmp_path / "scratch")
    tree.play()
    assert found.source.sha256 == entries(tree, "north")[-1].model_sha256


def test_a_region_as_trained_is_its_last_trained_round(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play()
    tree.enter(tree.world.federation, "north", 2)
    chain = tree.chain("north")
    assert [manifest.kind for manifest in chain] == ["train", "entry", "train", "train", "entry"]
    found = model(tree, "north", tmp_path, trained=True)
    assert (found.source.sha256, found.round, found.state) == (chain[3].model_sha256, 3, "trained")
    assert model(tree, "north", tmp_path, trained=True, t=2).source.sha256 == chain[2].model_sha256
    assert model(tree, "north", tmp_path, t=1).source.sha256 == chain[1].model_sha256
    for of in (None, "north"):  # its own file is that of a member, too
        own = Played(tree.file.with_name("north.yaml"))
        assert (
            model(own, None, tmp_path, trained=of is not None).source.sha256 == chain[3 if of else 4].model_sha256
        )


def test_the_roots_model_is_its_last_committed_round_in_both_states(tmp_path: Path) -> None:
    tree = make(tmp_path)
    last = tree.play(2)
    for trained in (False, True):
        assert model(tree, None, tmp_path, trained).source.sha256 == last.model_sha256


def test_a_site_as_trained_is_what_its_trainer_had(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play()
    run = tree.run("north")
    found = model(tree, "north/a", tmp_path / "scratch", trained=True)
    assert same(arrays(found), drawn(run, "a", 3)), "theta_k bit for bit, with the key layers"
    assert (found.round, found.origin) == (
        3, "as trained: the result of its local steps in round 3 of run `north`, bit for bit"
    )  # fmt: skip
    assert same(arrays(model(tree, "north/a", tmp_path / "again", True, 2)), drawn(run, "a", 2))


def test_a_clipped_site_says_that_it_is_what_was_sent(tmp_path: Path) -> None:
    tree = make(tmp_path, region={"update": {"clip_norm": 1.0}})
    tree.play()
    assert model(tree, "south/d", tmp_path / "scratch", trained=True).origin.endswith(
        "as it was sent, not as it was at the site: clipped to 1, codec float32"
    )


def test_a_site_as_received_has_the_committed_backbone_and_a_mean_of_key_layers(tmp_path: Path) -> None:
    """By NumPy: own + (committed - own) / 2, without residuals."""
    off = {"worldlm": {"attention": "mean", "residuals": "off"}}
    tree = make(tmp_path, root=off, region=off)
    tree.play()
    run, latest = tree.run("north"), tree.chain("north")[-1]
    committed, own = tensors(run, run.files_dir(3), latest.model), drawn(run, "a", 3)
    before = files(tmp_path)
    found = arrays(model(tree, "north/a", tmp_path / "scratch"))
    assert files(tmp_path) - before == files(tmp_path / "scratch"), "its private folder is not touched"
    for name, values in committed.items():
        is_key = name.startswith("blocks.1.")
        expected = own[name] - np.float32(0.5) * (own[name] - values) if is_key else values
        assert np.array_equal(found[name], expected), name


def test_residuals_for_a_site_are_those_that_its_round_then_sends(tmp_path: Path) -> None:
    """They come from another region, by way of the root."""
    tree = make(tmp_path)
    tree.play(2)
    root, federation = tree.run(), tree.world.federation
    send_down(root, federation, 3, ["north", "south"], Limits.of(federation.aggregation))
    sent = 0
    for name in ("north", "south"):
        child, _, entry = tree.enter(federation, name, 3)
        run, t, sites = tree.run(name), entry.round + 1, child.active
        before = {site: residuals_for(run, child, t, site) for site in sites}
        assert not any(run.residuals(t, site) for site in sites), "nothing is committed"
        tree.round(child, t)
        for site, residuals in before.items():
            after = run.residuals(t, site)
            assert contents(residuals) == contents(after)
            sent += len(after)
    assert sent > 0


def test_a_site_before_its_first_update_receives_the_committed_model(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play(0)
    tree.enter(tree.world.federation, "north", 1)
    entry = entries(tree, "north")[0]
    assert model(tree, "north/a", tmp_path / "scratch").source.sha256 == entry.model_sha256
    with pytest.raises(PhotonError, match=r"no round of run 'north' has an update of 'north/a' yet; without"):
        model(tree, "north/a", tmp_path, trained=True)
    with pytest.raises(PhotonError, match=r"run 'north' has trained no round yet; without --trained"):
        model(tree, "north", tmp_path, trained=True)
    with pytest.raises(PhotonError, match=r"run 'south' has no rounds in .* yet. Rounds of run 'world' start it"):
        model(tree, "south", tmp_path)


def test_rounds_that_have_no_such_model_are_refused_with_those_that_have(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play(2)
    wrong = [
        ("north", False, 2, "round 2 of run 'north' is not an entry, and 'north' has received no ", "entry: 1, 4"),
        ("north", True, 4, "round 4 of run 'north' has trained nothing; ", "a trained round: 2, 3, 5, 6"),
        ("north/a", True, 4, "round 4 of run 'north' has no update of 'north/a'; ", "one that has: 2, 3, 5, 6"),
        ("north/a", True, 9, "round 9 of run 'north' has no update of 'north/a'; "),
    ]
    for path, trained, t, start, *end in wrong:
        with pytest.raises(FederationError) as error:
            model(tree, path, tmp_path, trained, t)
        assert str(error.value).startswith(f"--round {t}: {start}")
        assert str(error.value).endswith("".join(end))
    with pytest.raises(PhotonError, match="round 9 of run 'north' is not committed; write --round 0 to 6"):
        model(tree, "north/a", tmp_path, t=9)


def test_a_collected_round_is_named(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play(2)
    remove(tree.run("north"), look(tree.run("north"), Rule(last=1)))
    with pytest.raises(PhotonError, match="round 1's model was removed by photon gc"):
        model(tree, "north/a", tmp_path, trained=True, t=2)
    assert model(tree, "north/a", tmp_path / "scratch").state == "received", "the newest is whole"


def test_names_that_nobody_has(tmp_path: Path) -> None:
    tree = make(tmp_path)
    for path in ("east", "north/c", "north/a/x", "", "north/"):
        with pytest.raises(FederationError) as error:
            find_node(tree.world, path)
        known = "north, north/a, north/b, south, south/c, south/d"
        assert str(error.value) == f"--member {path}: no member has this path; write one of: {known}"


def test_a_member_whose_file_is_elsewhere_is_with_its_owner(tmp_path: Path) -> None:
    tree = make(tmp_path)
    edit(tree.file, federations=[{"name": "north"}, {"name": "south", "federation": "south.yaml"}])
    for path in ("north", "north/a"):
        with pytest.raises(FederationError) as error:
            find_node(tree.world, path)
        assert str(error.value).startswith(f"{tree.file}:")
        assert "federations[north].federation: missing, so this machine has neither the model of north nor" in str(
            error.value
        )
        assert "ask the owner of 'north'" in str(error.value)
    assert find_node(tree.world, "south/d").view is not None


def test_a_flat_federations_sites_have_models_too(tmp_path: Path) -> None:
    """Without key layers a site receives the committed model."""
    tree = make(tmp_path, root={"worldlm": {"key_layers": 0}}, region={"worldlm": {"key_layers": 0}})
    tree.play()
    chain, run = tree.chain("north"), tree.run("north")
    assert model(tree, "north/b", tmp_path / "scratch").source.sha256 == chain[-1].model_sha256
    assert same(arrays(model(tree, "north/b", tmp_path / "b", trained=True)), drawn(run, "b", 3))
    found = model(tree, "north", tmp_path / "north")
    tree.play()
    assert found.source.sha256 == entries(tree, "north")[-1].model_sha256


def test_looking_twice_gives_the_same(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.play()
    call = fit.next_call(tree.world.federation, "north", 2)
    assert call == fit.next_call(tree.world.federation, "north", 2)
    for path in ("north", "north/a"):
        one, other = (model(tree, path, tmp_path / f"{path}-{n}").source.sha256 for n in (1, 2))
        assert one == other


def test_models_from_remote_stores_have_the_same_bits(tmp_path: Path) -> None:
    """Files are copied, never linked; the parent's and the region's stores are two."""
    above, here = f"memory://{tmp_path}/above", f"memory://{tmp_path}/here"
    remote = {"root": {"store": above}, "region": {"store": here, "parent": {"store": above}}}
    trees = [make(tmp_path / "local"), make(tmp_path / "remote", **remote)]
    for tree in trees:
        tree.play(2)
    for path, trained in (("north", False), ("south", True), ("north/a", False), ("south/d", True)):
        one, other = (
            model(tree, path, tmp_path / f"{n}-{path}-{trained}", trained) for n, tree in enumerate(trees)
        )
        assert one.source.sha256 == other.source.sha256
        assert same(arrays(one), arrays(other))
