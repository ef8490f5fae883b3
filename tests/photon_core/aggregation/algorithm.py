"""Algorithm 1 of Iacob et al. 2024 (arXiv 2405.14446), key layers alone, in memory: a tree of vectors.

Written from the paper's lines, with nothing of Photon's but its two functions of residuals.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from photon_core.aggregation.residuals import Offer, Policy, handed_up, in_order, partition, picked, route
from schemas.manifests import Residual

Vector = np.ndarray[Any, np.dtype[np.float64]]
Layers = dict[str, Vector]
Path = tuple[str, ...]
Train = Callable[["Node"], Layers]  # a leaf's key layers after its local steps


@dataclass
class Node:
    """One node and its state.

    Args:
        path: names from the root's member down; empty for the root.
        keys: K_q.
        children: nodes below.
        policy: its federation's worldlm.residuals.
        rounds: of a call.
        away: names of children that do not take part.
    """

    path: Path
    keys: Layers
    children: list["Node"] = field(default_factory=list)
    policy: Policy = "tree"
    rounds: int = 1
    away: set[str] = field(default_factory=set)
    returned: dict[str, Layers] = field(default_factory=dict)
    down: list[Residual] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path[-1]


@dataclass
class Log:
    """What went over which link: (from, to, number of the call, residual), and why others ended."""

    vectors: dict[str, Vector] = field(default_factory=dict)  # by a residual's folder, which names it here
    origins: dict[str, Path] = field(default_factory=dict)
    sent: list[tuple[Path, Path, int, Residual]] = field(default_factory=list)
    dropped: list[tuple[Path, Residual, str]] = field(default_factory=list)
    calls: int = 0

    def pooled(self, folder: str) -> list[Path]:
        """Nodes that have pooled it, in order."""
        return [to for start, to, _, residual in self.sent if residual.folder == folder and len(to) > len(start)]


def fit(node: Node, parent: Layers | None, above: list[Residual], train: Train, log: Log) -> list[Residual]:
    """Fit(q, ...): changes the node's state; returns U."""
    up: list[Residual] = []  # line 2
    if parent is not None:  # lines 3-6
        pooled = [] if node.policy == "off" else in_order(above)
        for layer, own in node.keys.items():
            coming = [log.vectors[one.folder] for one in pooled if one.layer == layer]
            node.keys[layer] = attend([own, parent[layer], *coming])
    for k in range(node.rounds if node.children else 1):  # line 7
        sent = _routed(node, above if k == 0 else [], log)  # line 8
        if not node.children:
            node.keys = train(node)  # line 9
            continue
        start, log.calls = dict(node.keys), log.calls + 1
        call = log.calls
        there = [child for child in node.children if child.name not in node.away]
        rows, handed = [], []
        for child in there:  # lines 10-12
            log.sent += [(node.path, child.path, call, one) for one in sent.get(child.name, [])]
            below = fit(child, start, sent.get(child.name, []), train, log)
            log.sent += [(child.path, node.path, call, one) for one in below]
            handed += [handed_up(one, child.name) for one in below]
            node.returned[child.name] = dict(child.keys)
        for layer in node.keys:  # lines 16-17
            node.keys[layer] = attend([start[layer], *(child.keys[layer] for child in there)])
            rows += [_picked(child, layer, call, log) for child in there]
        known = {child.name: child.keys for child in there}
        found = partition(_offers(node, rows, known, log), _offers(node, handed, known, log), node.policy,
                          is_root=parent is None)  # line 18  # fmt: skip
        up, node.down = found.up, found.down
        log.dropped += [(node.path, one.residual, one.why) for one in found.dropped]
    return up


def attend(rows: list[Vector]) -> Vector:
    """Of row 0, with cosines; it weighs e times an average other row."""
    scores = np.array([cosine(rows[0], row) for row in rows])
    weights = np.exp((scores - scores.max()) / max(1 - scores[1:].mean(), 1e-6))
    return np.average(rows, axis=0, weights=weights)


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _routed(node: Node, above: list[Residual], log: Log) -> dict[str, list[Residual]]:
    if not node.children:
        return {}
    known = {child.name: node.returned.get(child.name, node.keys) for child in node.children}
    offers = _offers(node, node.down, known, log) + _offers(node, above, known, log, from_above=True)
    found = route(offers, {child.name for child in node.children} - node.away, node.policy)
    log.dropped += [(node.path, one.residual, one.why) for one in found.dropped]
    return found.members


def _offers(
    node: Node, residuals: list[Residual], known: dict[str, Layers], log: Log, from_above: bool = False
) -> list[Offer]:
    found = []
    for one in residuals:
        x = log.vectors[one.folder]
        members = {name: cosine(x, keys[one.layer]) for name, keys in known.items()}
        found.append(Offer(one, members, cosine(x, node.keys[one.layer]), from_above))
    return found


def _picked(child: Node, layer: str, call: int, log: Log) -> Residual:
    folder = f"{'/'.join(child.path)} {layer} {call}"
    log.vectors[folder], log.origins[folder] = child.keys[layer], child.path
    return picked(layer, child.name, call, folder, [])
