"""The curves of a tree's nodes as CSV: a row for each round of each node, for spreadsheets and other programs."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from photon_core.aggregation.attention import entropy
from photon_core.evidence.metrics import perplexity
from photon_core.evidence.nodes import OWN_LOSS, Names
from photon_core.evidence.tree import Tree
from schemas.manifests import Attention, RoundManifest, UpdateRef

COLUMNS = (
    "node", "kind", "root_round", "round", "loss", "perplexity", "received_loss", "train_loss", "steps", "tokens",
    "bytes_sent", "own_weight", "entropy",
)  # fmt: skip


def node_csv(tree: Tree) -> str:
    """A header, then the rows; a value that is not known is empty.

    `loss` is that of the node's own model. `received_loss` is that of its federation's model on the site's text.
    `own_weight` and `entropy` are of a federation's weights over its own and its members' key layers, in the mean.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(tree))
    return text.getvalue()


def _rows(tree: Tree) -> Iterator[dict[str, Any]]:
    for names, line in tree.lines.items():
        for manifest in line:
            if manifest.updates:
                yield _federation(tree, names, manifest)
        yield from _sites(tree, names, line)


def _federation(tree: Tree, names: Names, manifest: RoundManifest) -> dict[str, Any]:
    updates = manifest.updates.values()
    return {
        **_head(tree, names, names, "federation", manifest),
        **_losses(manifest.metrics.get("loss")),
        "train_loss": manifest.metrics.get("train_loss"),
        "steps": max(update.steps for update in updates),
        "tokens": sum(update.tokens for update in updates),
        "bytes_sent": sum(update.bytes for update in updates),
        **_mixed(tree.mixed(manifest.attention)),
    }


def _sites(tree: Tree, names: Names, line: Sequence[RoundManifest]) -> Iterator[dict[str, Any]]:
    """Rows of the members that are sites, and of federations that cannot be read."""
    members = dict.fromkeys(name for manifest in line for name in manifest.updates)
    known = {node.names: node.is_site for node in tree.nodes}
    for member in members:
        path = (*names, member)
        if path in tree.rounds:
            continue
        kind = "site" if known.get(path, True) else "federation"
        for manifest in line:
            if update := manifest.updates.get(member):
                scores = manifest.evaluations.get(member, {})
                yield _head(tree, path, names, kind, manifest) | _site(update, scores)


def _site(update: UpdateRef, scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        **_losses(update.metrics.get(OWN_LOSS)),
        "received_loss": scores.get("loss"),
        "train_loss": update.metrics.get("train_loss"),
        "steps": update.steps,
        "tokens": update.tokens,
        "bytes_sent": update.bytes,
    }


def _head(tree: Tree, path: Names, above: Names, kind: str, manifest: RoundManifest) -> dict[str, Any]:
    place = tree.place(above, manifest.round)
    return {"node": tree.name(path), "kind": kind, "root_round": place, "round": manifest.round}


def _losses(loss: float | None) -> dict[str, Any]:
    return {"loss": loss, "perplexity": None if loss is None else perplexity(loss)}


def _mixed(attention: Mapping[str, Attention]) -> dict[str, Any]:
    if not attention:
        return {}
    return {
        "own_weight": fmean(mixed.weights[0] for mixed in attention.values()),
        "entropy": fmean(entropy(mixed.weights) for mixed in attention.values()),
    }
