"""Chains of manifests, written as data: a tree of two regions whose numbers can be added in the head.

    world   0  1  2                          rounds 1 and 2 with both regions; south is absent from round 2
    north   0  1e 2  3e 4                    entries (e) into rounds 1 and 2, one round after each
    south   0  1e 2  3e 4

A residual of south/d goes up in round 1, to north in round 2, and there to a.
"""

from pathlib import Path
from typing import Any

from photon_core.evidence.tree import Call, Entry, Tree
from schemas.manifests import Attention, FileEntry, ParentRef, Residual, RoundManifest, UpdateRef
from schemas.reading.world import load_world
from tests.worlds import write_world

LAYER = "blocks.1"
KEYS = {LAYER: ["w"]}
ROW = "south/d@2"  # of the residual in a pool


def manifest(run: str, t: int, **more: Any) -> RoundManifest:
    return RoundManifest(
        run=run, round=t, model_sha256="0", federation_sha256="0", created="", versions={}, **{"model": []} | more
    )


def update(tokens: int, steps: int, size: int = 1, **metrics: float) -> UpdateRef:
    return UpdateRef(attempt=1, sha256="0", tokens=tokens, weight=0.5, bytes=size, steps=steps, metrics=metrics)


def files(size: int) -> list[FileEntry]:
    return [FileEntry(path="f.safetensors", sha256="0", bytes=size)]


def above(run: str, t: int) -> ParentRef:
    return ParentRef(store="s", run="world", round=t, sha256="0", member=run)


def attention(*weights: float, rows: tuple[str, ...], tau: float = 1.0) -> dict[str, Attention]:
    """Weights of the rows own, ... of the one key layer."""
    one = Attention(rows=["own", *rows], scores=[0.0] * len(weights), weights=list(weights), tau=tau)
    return {LAYER: one}


def residual(*origin: str, size: int = 70, **more: Any) -> Residual:
    return Residual(layer=LAYER, origin=list(origin), born=2, folder="f", files=files(size), **more)


def root_chain() -> list[RoundManifest]:
    both = ["north", "south"]
    return [
        manifest("world", 0, model=files(1000), key_layers=KEYS),
        manifest(
            "world", 1, model=files(1000), moments=files(50), key_layers=KEYS, sampled=both,
            updates={"north": update(400, 3, 1100), "south": update(400, 3, 1170)}, metrics={"loss": 2.0},
            attention=attention(0.5, 0.25, 0.25, rows=("north", "south")), down=[residual("south", "d")],
        ),
        manifest(
            "world", 2, model=files(1000), key_layers=KEYS, sampled=both, updates={"north": update(400, 3, 1100)},
            left_out={"south": "away"}, metrics={"loss": 1.5}, attention=attention(0.5, 0.5, rows=("north",)),
        ),
    ]  # fmt: skip


def north_chain() -> list[RoundManifest]:
    sent = residual("south", "d", hops=3)
    sites = {"a": update(200, 3, 500, valid_loss=1.0), "b": update(200, 3, 600, valid_loss=2.0)}
    return [
        manifest("north", 0, model=files(1000), key_layers=KEYS),
        manifest("north", 1, kind="entry", parent=above("north", 1), entries=1, model=files(1000), key_layers=KEYS,
                 attention=attention(0.5, 0.5, rows=("parent",))),
        manifest("north", 2, entries=1, model=files(1000), key_layers=KEYS, sampled=["a", "b"], updates=sites,
                 metrics={"loss": 2.5}, attention=attention(0.4, 0.4, 0.2, rows=("a", "b")),
                 dropped={"out of line": 1}),
        manifest("north", 3, kind="entry", parent=above("north", 2), entries=2, model=files(1000), key_layers=KEYS,
                 attention=attention(0.2, 0.5, 0.3, rows=("parent", ROW)), received=[sent]),
        manifest("north", 4, entries=2, model=files(1000), key_layers=KEYS, sampled=["a", "b"],
                 updates={"a": update(200, 3, 500, valid_loss=0.5)}, metrics={"loss": 2.25},
                 attention=attention(0.6, 0.4, rows=("a",))),
    ]  # fmt: skip


def south_chain() -> list[RoundManifest]:
    own = residual("c")
    sites = {"c": update(200, 3, 500, valid_loss=3.0), "d": update(200, 3, 600, valid_loss=4.0)}
    return [
        manifest("south", 0, model=files(1000), key_layers=KEYS),
        manifest("south", 1, kind="entry", parent=above("south", 1), entries=1, model=files(1000),
                 key_layers=KEYS),
        manifest("south", 2, entries=1, model=files(1000), key_layers=KEYS, sampled=["c", "d"], updates=sites,
                 metrics={"loss": 3.5}, up=[residual("d", hops=1)], down=[own]),
        manifest("south", 3, kind="entry", parent=above("south", 2), entries=2, model=files(1000), key_layers=KEYS,
                 down=[own]),
        manifest("south", 4, entries=2, model=files(1000), key_layers=KEYS, sampled=["c", "d"],
                 updates={"d": update(200, 3, 600)}),
    ]  # fmt: skip


def chains() -> dict[tuple[str, ...], list[RoundManifest]]:
    return {(): root_chain(), ("north",): north_chain(), ("south",): south_chain()}


def small_tree(folder: Path, **changes: Any) -> Tree:
    """The tree of these chains, with what its stores would have sent. `changes` are fields of it."""
    to_north, to_a = Call((), 2, "north"), Call(("north",), 4, "a")
    sent = {
        to_north: [residual("south", "d", hops=3)], Call((), 2, "south"): [],
        to_a: [residual("south", "d", hops=4)], Call(("north",), 4, "b"): [],
        Call(("south",), 4, "c"): [], Call(("south",), 4, "d"): [],
    }  # fmt: skip
    entries = {("north", "a"): [Entry(to_a, attention(0.1, 0.6, 0.3, rows=("parent", ROW)))]}
    values = {"rounds": chains(), "sent": sent, "site_entries": entries} | changes
    return Tree(load_world(write_world(folder)), **values)
