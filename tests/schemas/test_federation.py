"""The federation model: defaults, derived numbers, and values that must be let through."""

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.federation import Federation
from schemas.sections.server import Server
from schemas.sections.sites import Site
from tests.federations import sample, site


def test_defaults_of_a_file_without_a_recipe() -> None:
    federation = sample(recipe=None)
    assert (federation.sites_per_round, federation.quorum, federation.schedule_steps) == (3, 3, 50)
    assert federation.rounds.deadline == 86_400
    assert (federation.server.optimizer, federation.server.lr) == ("fedavg", 1.0)
    assert federation.local.optimizer_state == "keep"


def test_a_sample_is_also_its_own_quorum() -> None:
    federation = sample(rounds={"count": 5, "sites_per_round": 2})
    assert (federation.sites_per_round, federation.quorum) == (2, 2)
    federation = sample(rounds={"count": 5, "sites_per_round": 2, "quorum": 1})
    assert (federation.sites_per_round, federation.quorum) == (2, 1)


@pytest.mark.parametrize(
    ("written", "seconds"), [(90, 90), (1.5, 1.5), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5 d", 129_600)]
)
def test_durations(written: Any, seconds: float) -> None:
    assert sample(rounds={"count": 1, "deadline": written}).rounds.deadline == seconds


@pytest.mark.parametrize("name", ["a", "Site-1", "eu.west_2", "0", "x" * 63])
def test_names(name: str) -> None:
    assert Site.model_validate(site(name)).name == name


def test_proportions_may_be_rounded_as_floats_are() -> None:
    streams = [{"name": f"s{i}", "source": "s.txt", "proportion": 0.1} for i in range(10)]
    assert len(Site.model_validate({"name": "a", "streams": streams}).streams) == 10


def test_the_same_stream_name_may_serve_two_sites() -> None:
    assert sample().sites[0].streams == sample().sites[1].streams


def test_it_survives_json_and_pickle() -> None:
    federation = sample(rounds={"count": 5, "deadline": "30m"}, preset="75M")
    assert Federation.model_validate(federation.model_dump(mode="json")) == federation
    assert Federation.model_validate_json(federation.model_dump_json()) == federation
    assert pickle.loads(pickle.dumps(federation)) == federation


def test_it_cannot_be_changed() -> None:
    federation = sample()
    with pytest.raises(ValidationError, match="frozen"):
        federation.run = "other"


def test_momentum_belongs_to_the_optimizers_that_have_one() -> None:
    assert Server(optimizer="nesterov", momentum=0.9).momentum == 0.9
    with pytest.raises(ValidationError, match="fedavg has no momentum"):
        Server(optimizer="fedavg", momentum=0.9)


def test_a_constant_schedule_may_warm_up_for_as_long_as_it_likes() -> None:
    local = {"steps": 10, "batch_size": 2, "schedule": {"name": "constant", "warmup_steps": 1000}}
    assert sample(local=local).local.schedule.warmup_steps == 1000


def test_states_lie_beside_the_store_and_each_other() -> None:
    assert sample(sites=[site("a", state_dir="/storey/a"), site("b", state_dir="/storey/b")])
    with pytest.raises(ValidationError, match="'/store/r' lies in store '/store'"):
        sample(sites=[site("a", state_dir="/store/r")])
    with pytest.raises(ValidationError, match=r"'/x/' is sites\[a\]\.state_dir '/x'"):
        sample(sites=[site("a", state_dir="/x"), site("b", state_dir="/x/")])


def test_trackers_share_a_folder() -> None:
    """By default they do: photon-trackers beside the file."""
    trackers = [{"name": name, "folder": "/x/trackers"} for name in ("tensorboard", "mlflow", "wandb")]
    assert len(sample(trackers=trackers).trackers) == 3
    with pytest.raises(ValidationError, match="lies in store"):
        sample(trackers=trackers, store="/x")


def test_one_server_is_one_however_its_address_is_written() -> None:
    store = {"store": "s3://b/runs", "storage": {"endpoint_url": "http://Host:9000/"}}
    shards = {"shards": "s3://b/runs/a", "storage": {"endpoint_url": "http://host:9000"}}
    with pytest.raises(ValidationError, match="lies in store"):
        sample(**store, sites=[site("a", **shards)])


def test_paused_sites_do_not_count() -> None:
    sites = [site("a"), site("b", paused=True), site("c")]
    federation = sample(sites=sites)
    assert (federation.active, federation.paused) == (["a", "c"], ["b"])
    assert (federation.sites_per_round, federation.quorum) == (2, 2)
    with pytest.raises(ValidationError, match=r"3 sites a round, but there are 2 that are not paused \(b are\)"):
        sample(sites=sites, rounds={"count": 5, "sites_per_round": 3})
    with pytest.raises(ValidationError, match="all sites are paused; remove 'paused' from at least one"):
        sample(sites=[site("a", paused=True)])
