"""Key layers through whole rounds: in the limits of their settings a run is what is known already, bit for bit."""

from collections.abc import Callable

import numpy as np
import pytest

from photon_core.data.prepare import prepare_site
from photon_core.model.key_layers import key_layers, names_in
from photon_core.run.history import history
from photon_core.run.run import Run, run_of
from photon_core.tensors.reader import TensorReader
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest
from schemas.sections.sites import Site
from schemas.view import view_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
MODEL = {"n_layers": 2, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64}
EVERY = ["wte", "wpe", "blocks.0", "blocks.1", "norm_f"]


def run(federation: Federation) -> list[RoundManifest]:
    from flows.federated_run import federated_run

    federated_run(federation)
    return history(run_of(federation))


def tensors(run: Run, folder: str, files: list[FileEntry]) -> dict[str, np.ndarray]:
    with TensorReader(run.store, folder, files) as reader:
        return {name: np.concatenate([c.copy() for c in reader.chunks(name, 1 << 20)]) for name in reader.tensors}


def model(federation: Federation, t: int) -> dict[str, np.ndarray]:
    run = run_of(federation)
    return tensors(run, run.files_dir(t), run.round(t).model)


def own(federation: Federation, t: int, site: str) -> dict[str, np.ndarray]:
    """A site's key layers after round t."""
    run = run_of(federation)
    update = run.update(t, site, 1)
    return tensors(run, run.site_dir(t, site, 1), update.key_layers)


def alone_with(federation: Federation, site: Site) -> Federation:
    """A flat federation of one of its sites, prepared in its own folder."""
    name = f"{federation.store}-alone-{site.name}"
    data = federation.model_dump(mode="json") | {"store": name, "sites": []}
    del data["worldlm"], data["server"]["weights"]
    data["sites"] = [site.model_dump(mode="json") | {"state_dir": f"{name}-state"}]
    alone = Federation.model_validate(data)
    prepare_site(view_of(alone, site.name))
    return alone


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def made(prepared: Callable[..., Federation]) -> Callable[..., Federation]:
    """A federation of three sites with these `worldlm` settings, of the same name and text whatever they are."""

    def make(folder: str, sites: tuple[str, ...] = ("a", "b", "c"), **sections: object) -> Federation:
        return prepared(sites, folder=folder, model=MODEL, **sections)

    return make


def test_without_key_layers_it_is_flat_federated_learning(made: Callable[..., Federation]):
    flat = run(made("flat", server={"weights": "uniform"}))
    none = run(made("none", worldlm={"key_layers": 0}))
    assert [m.model_sha256 for m in none] == [m.model_sha256 for m in flat]


def test_every_tensor_key_and_no_temperature_is_local_training(made: Callable[..., Federation]):
    local = made("local", worldlm={"key_layers": EVERY, "temperature": 0, "residuals": "off"})
    run(local)
    for site in local.sites:
        alone = alone_with(local, site)
        run(alone)
        assert equal(own(local, 2, site.name), model(alone, 2)), site.name


def test_no_temperature_keeps_key_layers_at_home_as_fedper_does(made: Callable[..., Federation]):
    federation = made("fedper", worldlm={"temperature": 0, "residuals": "off"})
    rounds = run(federation)
    names = names_in(key_layers(federation))
    assert names == {name for name in model(federation, 0) if name.startswith("blocks.1.")}
    start = {name: values for name, values in model(federation, 0).items() if name in names}
    end = {name: values for name, values in model(federation, 2).items() if name in names}
    assert equal(start, end), "no member's key layer reaches the federation's"
    assert all(found.weights == [1, 0, 0, 0] for m in rounds[1:] for found in m.attention.values())
    assert not equal(own(federation, 2, "a"), own(federation, 2, "b"))
    assert rounds[2].metrics["perplexity"] < rounds[0].metrics.get("perplexity", np.inf)


@pytest.mark.long
def test_every_tensor_key_attention_mean_without_the_own_row_is_flat(made: Callable[..., Federation]):
    flat = made("flat", server={"weights": "uniform"})
    mean = made("mean", worldlm={"key_layers": EVERY, "attention": "mean", "own_row": False, "residuals": "off"})
    assert len(run(flat)) == len(run(mean)) == 3
    one, other = model(flat, 1), model(mean, 1)  # in round 2 sites enter with their own layers, too
    assert all(np.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in one)


@pytest.mark.long
def test_a_large_temperature_is_the_mean(made: Callable[..., Federation]):
    cosine = made("cosine", worldlm={"temperature": 1e12, "residuals": "off"})
    mean = made("mean", worldlm={"attention": "mean", "residuals": "off"})
    run(cosine)
    run(mean)
    one, other = model(cosine, 2), model(mean, 2)
    assert all(np.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in one)


def test_the_order_of_members_changes_no_bit(made: Callable[..., Federation]):
    first = made("first", worldlm={})
    data = first.model_dump(mode="json")
    again = Federation.model_validate(data | {"store": first.store + "-again", "sites": data["sites"][::-1]})
    assert [m.model_sha256 for m in run(first)] == [m.model_sha256 for m in run(again)]
