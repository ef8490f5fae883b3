"""Loss and perplexity of a node's model, where text is: at the site, or at all sites below a federation."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import fsum
from pathlib import Path

from photon_core.data.shards import available
from photon_core.errors import DataError
from photon_core.evidence.metrics import perplexity
from photon_core.export.model import NodeModel
from photon_core.export.node import Node
from photon_core.export.source import paths_of
from photon_core.jobs.launcher import Launcher, cores
from photon_core.jobs.sharing import VARIABLE
from photon_core.training import entry
from schemas.view import SiteView, views


@dataclass(frozen=True)
class Leaves:
    """The sites at and below a node.

    Args:
        sites: path -> site, for those whose shards are on this machine.
        missing: path -> reason, for the others, and for federations whose files are elsewhere.
    """

    sites: Mapping[str, SiteView]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Score:
    """A model's loss at a site, in nats per token, over that many tokens."""

    path: str
    loss: float
    tokens: float

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model.

    Args:
        scores: one for each evaluated site.
        missing: path -> reason, for what was not evaluated.
    """

    scores: Sequence[Score]
    missing: Mapping[str, str]

    def whole(self, path: str) -> Score:
        """The mean over all evaluated tokens."""
        tokens = fsum(one.tokens for one in self.scores)
        return Score(path, fsum(one.loss * one.tokens for one in self.scores) / tokens, tokens)


def leaves_of(node: Node) -> Leaves:
    """The sites at and below a node, also the paused ones.

    Raises:
        DataError: no site has shards on this machine; all are named.
    """
    missing = dict[str, str]()
    below = {node.name: node.view} if node.view is not None else _views_below(node, missing)
    sites = {path: view for path, view in below.items() if available(view) is not None}
    missing |= {path: "its shards are not on this machine" for path in below if path not in sites}
    if not sites:
        reasons = "; ".join(f"{path}: {why}" for path, why in missing.items())
        raise DataError(
            f"there is no text to evaluate '{node.name}' on: {reasons}. Where the text is, write: photon prepare"
        )
    return Leaves(sites, missing)


def _views_below(node: Node, missing: dict[str, str]) -> dict[str, SiteView]:
    """Path -> site. Adds the federations whose files are elsewhere to `missing`."""
    found = dict[str, SiteView]()
    for names, world in node.world.nodes(node.names):
        found |= {"/".join((*names, view.name)): view for view in views(world.federation)}
        for child in world.federation.federations:
            if child.name not in world.children:
                missing["/".join((*names, child.name))] = "its file is not on this machine"
    return found


def evaluate_model(model: NodeModel, leaves: Leaves, folder: Path) -> Evaluation:
    """Evaluate a model on the held-out text of each leaf, in child processes.

    Args:
        model: model of the leaf, or of a federation above.
        leaves: leaves from `leaves_of`.
        folder: folder for copies of the model's files.

    Raises:
        DataError: no leaf holds out text.
        ChildFailed: a child was killed, or raised an error of another kind.
        CorruptFile: the model's files do not match their manifest.
    """
    files = paths_of(model.source, folder, model.node.federation.aggregation.connections)
    paths = [str(path) for path in files]
    slots = min(cores(), len(leaves.sites))
    with (
        ThreadPoolExecutor(slots, "evaluate") as pool,
        Launcher(slots, preload=entry.PRELOAD, shared=os.environ.get(VARIABLE)) as launcher,  # ends first
    ):
        found = list(pool.map(partial(_score, launcher, paths), *zip(*leaves.sites.items(), strict=True)))
    scores = [one for one in found if isinstance(one, Score)]
    failed = {path: one for path, one in zip(leaves.sites, found, strict=True) if isinstance(one, str)}
    if not scores:
        raise DataError("; ".join(failed.values()))
    return Evaluation(scores, {**leaves.missing, **failed})


def _score(launcher: Launcher, files: list[str], path: str, view: SiteView) -> Score | str:
    """The score at a site; the reason if it holds out no text."""
    try:
        scores = launcher.run(
            partial(entry.evaluate, view, files, launcher.threads),
            label=path,
            timeout=view.federation.rounds.evaluation_deadline,
        )
    except DataError as error:
        return str(error)
    return Score(path, scores["loss"], scores["tokens"])
