"""Members of a federation, sites and federations: their limits and flows, and what is checked of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_core.errors import FederationError
from photon_core.run.members import (
    ANY_WORK,
    FederationMember,
    Named,
    SiteMember,
    Work,
    active,
    check_members,
    evaluated_tokens,
    member,
    members,
    most_work,
)
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.view import view_of
from tests.federations import sample, site

MODEL = {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 257}


def federation(**sites: dict[str, Any]) -> Federation:
    given = [{"name": name, "streams": [{"name": "web", "source": "x"}], **more} for name, more in sites.items()]
    return Federation.model_validate(sample(sites=given))


def test_sites_are_members() -> None:
    file = federation(a={}, b={"paused": True}, c={"data_tokens": 7})
    assert list(members(file)) == ["a", "b", "c"]
    assert [one.name for one in active(file)] == file.active == ["a", "c"]
    c = member(file, "c")
    assert (c.data_tokens, c.paused, c.round_flow, c.evaluation_flow) == (7, False, "site-round", "site-evaluate")
    assert isinstance(c, SiteMember) and c.view.name == "c" and c.federation is file
    c.check()
    with pytest.raises(FederationError, match="no site is named 'd'"):
        member(file, "d")


def test_a_site_s_limits_are_its_own() -> None:
    file = federation(a={}, b={"steps": 2}, c={"time_limit": 1.0})
    steps, tokens = file.local.steps, file.local.batch_size * file.model.max_seq_len
    works = [Work(n * tokens, n, tokens) for n in (steps, 2, steps)]
    assert [one.most() for one in members(file).values()] == works
    assert [one.least_steps() for one in members(file).values()] == [steps, 2, -(-steps // 4)]
    assert most_work(members(file).values()) == Work(steps * tokens, steps, tokens)
    assert most_work([member(file, "b")]) == Work(2 * tokens, 2, tokens)


@pytest.fixture
def world(tmp_path: Path) -> Federation:
    """A root with a site and two regions: one has its own region, and the other keeps its file."""
    common = {"tokenizer": "bytes", "recipe": None, "model": MODEL, "local": {"steps": 10, "batch_size": 2}}
    files = {
        "world": {"rounds": {"count": 5}, "sites": [site("a")]},
        "europe": {"rounds": {"sites_per_round": 2}, "worldlm": {"rounds": 3}},
        "iberia": {"local": {"steps": 4, "batch_size": 2}, "sites": [site("p"), site("q", steps=2)]},
    }
    files["world"]["federations"] = [
        {"name": "europe", "federation": "europe.yaml", "data_tokens": 7},
        {"name": "asia", "paused": True},
    ]
    files["europe"]["federations"] = [{"name": "iberia", "federation": "iberia.yaml"}]
    files["europe"]["sites"] = [site("b"), site("c", steps=6), site("d", paused=True)]
    for name, parent in (("europe", "world"), ("iberia", "europe")):
        files[name]["parent"] = {"store": f"stores/{parent}", "run": parent, "member": name}
    for name, more in files.items():
        data = {**common, "run": name, "store": f"stores/{name}", **more}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data), "utf-8")
    return load_federation(tmp_path / "world.yaml")


def test_federations_are_members(world: Federation) -> None:
    assert list(members(world)) == ["a", "europe", "asia"]
    assert [one.name for one in active(world)] == world.active == ["a", "europe"]
    europe, asia = member(world, "europe"), member(world, "asia")
    assert isinstance(europe, FederationMember) and europe.federation is world
    assert (europe.data_tokens, europe.paused, asia.paused) == (7, False, True)
    assert (europe.round_flow, europe.evaluation_flow) == ("fit", "fit-evaluate")
    with pytest.raises(FederationError, match="sites: 'europe' is a federation, not a site; write one of: a"):
        view_of(world, "europe")
    with pytest.raises(FederationError, match="no site is named 'd'"):
        member(world, "d")


def test_a_federation_s_limits_are_the_sum_of_its_members(world: Federation) -> None:
    """Three rounds of two of b (10 steps), c (6) and iberia (a round of p with 4 steps and q with 2).

    A step is one of both: where b is absent, c and iberia make 6 steps with the tokens of 6 + 6.
    """
    europe, step = member(world, "europe"), 2 * world.model.max_seq_len
    assert europe.most() == Work(3 * (10 + 6) * step, 3 * 10, (2 + 1) * step)
    assert europe.least_steps() == 3 * 2
    assert most_work(active(world)) == europe.most()
    assert europe.evaluated() == 4 * evaluated_tokens(world), "each site's of b, c, p and q"


def test_a_file_that_is_not_at_hand_sets_no_limit(world: Federation, tmp_path: Path) -> None:
    asia, europe = member(world, "asia"), member(world, "europe")
    assert (asia.most(), asia.least_steps(), asia.evaluated()) == (ANY_WORK, 1, ANY_WORK.tokens)
    asia.check()
    inner = (tmp_path / "iberia.yaml").read_text()
    (tmp_path / "iberia.yaml").write_text(inner.replace("member: iberia", "member: portugal"))
    assert (europe.most(), europe.least_steps()) == (ANY_WORK, 1)
    (tmp_path / "europe.yaml").unlink()
    assert (europe.most(), europe.least_steps()) == (ANY_WORK, 1)
    europe.check()


def test_members_below_count_as_any_where_their_file_stays_with_them(world: Federation, tmp_path: Path) -> None:
    file = tmp_path / "europe.yaml"
    file.write_text(file.read_text().replace("federation: iberia.yaml", "pool: iberia"))
    europe = member(world, "europe")
    assert (europe.most(), europe.least_steps()) == (ANY_WORK, 3)


def test_a_federation_is_checked_with_all_below_it(world: Federation, tmp_path: Path) -> None:
    check_members(world)
    file = tmp_path / "iberia.yaml"
    text = file.read_text()
    file.write_text(text + "server: {momentum: 0.9}\n")
    with pytest.raises(FederationError, match=r"iberia\.yaml:.*fedavg has no momentum"):
        check_members(world)
    file.write_text(text.replace("name: q\n", "name: q\n  hardware: {devices: 4, tflops: 1, parallel: ddp}\n"))
    with pytest.raises(FederationError, match=r"iberia\.yaml: sites\[q\]\.hardware: trains with DDP"):
        check_members(world)
    file.write_text(text)
    europe = tmp_path / "europe.yaml"
    europe.write_text(europe.read_text().replace("member: europe", "member: eu"))
    with pytest.raises(
        FederationError, match=r"europe\.yaml:.* parent\.member: 'eu', but run 'world' lists it as"
    ):
        check_members(world)


def test_a_name_whose_file_may_have_lost_it() -> None:
    assert Named("gone", federation(a={})).name == "gone"
