"""A small tree of federations in a folder: a root with regions, each with its own file, store and sites."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from photon_core.data.prepare import prepare_site
from schemas.reading.world import World, load_world
from schemas.view import views
from tests.conftest import TINY, merge, topics, write_text

MODEL = {"n_layers": 2, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64}
REGIONS = {"north": ("a", "b"), "south": ("c", "d")}


def write_world(
    folder: Path,
    regions: Mapping[str, tuple[str, ...]] = REGIONS,
    root: Mapping[str, Any] | None = None,
    region: Mapping[str, Any] | None = None,
) -> Path:
    """The files of a root and its regions, and their sites' text. Returns the root's file.

    Args:
        folder: a new one.
        regions: name -> names of its sites.
        root, region: sections over the root's, and over every region's.
    """
    shared = merge(TINY, {"model": MODEL})
    everybody = [site for sites in regions.values() for site in sites]
    for name, sites in regions.items():
        data = merge(shared, {"run": name, "store": f"store-{name}", "worldlm": {}})
        data["rounds"] = {"report_every": None}
        data["parent"] = {"store": "store-world", "run": "world", "member": name}
        data["sites"] = [
            {
                "name": site,
                "state_dir": f"sites/{site}",
                "streams": [{"name": "text", "source": f"text/{site}.jsonl"}],
            }
            for site in sites
        ]
        for site in sites:
            text = topics(everybody.index(site), max(8, len(everybody)))
            write_text(folder / "text" / f"{site}.jsonl", text)
        _write(folder / f"{name}.yaml", merge(data, dict(region or {})))
    data = merge(shared, {"run": "world", "store": "store-world", "worldlm": {}, "sites": []})
    data["federations"] = [{"name": name, "federation": f"{name}.yaml"} for name in regions]
    return _write(folder / "world.yaml", merge(data, dict(root or {})))


def prepare_world(file: Path) -> World:
    """The tree of a root's file, with every site's text prepared."""
    world = load_world(file)
    for _, node in world.nodes():
        for view in views(node.federation):
            prepare_site(view)
    return world


def _write(file: Path, data: Mapping[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(dict(data), sort_keys=False))
    return file
