"""A site's view: the settings that hold for it, its folders, its nodes."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.view import view_of
from tests.federations import sample

HARDWARE = {"nodes": 2, "devices": 4, "tflops": 1, "interconnect": 1, "memory_gb": 80}


def with_site(**values: Any) -> Federation:
    site = {"name": "s", "streams": [{"name": "one", "source": "x.txt"}], **values}
    return sample(recipe=None, sites=[site])


def test_folders_follow_state_dir(tmp_path: Path) -> None:
    view = view_of(with_site(state_dir=str(tmp_path)), "s")
    assert view.state_dir == tmp_path
    assert view.data_dir == tmp_path / "data"
    assert view.cache_dir == tmp_path / "cache"
    assert view.split_dir("one", "valid") == tmp_path / "data" / "one" / "valid"


def test_the_default_state_dir_is_by_run_and_site() -> None:
    federation = with_site()
    assert view_of(federation, "s").state_dir == Path("photon-sites", federation.run, "s")


def test_an_unknown_site_is_named_with_those_that_there_are() -> None:
    with pytest.raises(FederationError, match="no site is named 'x'; write one of: s"):
        view_of(with_site(), "x")


def test_a_sites_own_keys_come_before_those_of_all() -> None:
    plain, own = view_of(with_site(), "s"), view_of(with_site(steps=2, micro_batch=1, pool="mine"), "s")
    assert (plain.steps, plain.micro_batch) == (plain.local.steps, plain.local.micro_batch)
    assert (own.steps, own.micro_batch, own.section.work_pool) == (2, 1, "mine")


def test_a_node_has_its_own_folder_and_devices_and_sends_all_that_it_learnt() -> None:
    federation = with_site(hardware=HARDWARE)
    changes = {"clip_norm": 1.0, "noise_multiplier": 0.5}
    whole = view_of(federation.model_copy(update={"update": federation.update.model_copy(update=changes)}), "s")
    node = whole.node(2)
    assert node.name == "s" and node.state_dir == whole.state_dir / "nodes" / "2"
    assert node.hardware is not None and (node.hardware.nodes, node.hardware.all_devices) == (1, 4)
    assert not node.local.evaluate and (node.update.clip_norm, node.update.noise_multiplier) == (None, 0.0)
    assert whole.hardware is not None and whole.hardware.nodes == 2 and whole.local.evaluate
