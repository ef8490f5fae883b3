"""A node's model that can be read, and where it comes from; the last committed model of a federation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from photon_core.data.tokenizer import Tokenizer, load_tokenizer
from photon_core.errors import PhotonError
from photon_core.export.node import Node
from photon_core.export.source import Committed, Source
from photon_core.run.history import check_kept
from photon_core.run.opening import check_frozen
from photon_core.run.run import Run, run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest

Scores = Sequence[tuple[str, Mapping[str, float]]]  # whose held-out text, and perplexity and tokens on it


@dataclass(frozen=True)
class NodeModel:
    """The model of a node in one state.

    Args:
        node: the node.
        source: its tensors.
        tokenizer: tokenizer of the tree.
        round: number of the round that it belongs to, in the run of the node's federation.
        state: "committed", "received" or "trained".
        origin: a sentence for people: what the model is, and from which round.
        scores: its scores on held-out text, as far as a manifest has them.
    """

    node: Node
    source: Source
    tokenizer: Tokenizer
    round: int
    state: str
    origin: str
    scores: Scores = ()


def committed_model(node: Node, t: int | None) -> NodeModel:
    """The model of a federation's committed round t, by default of its last one.

    Raises:
        FederationError, PhotonError: as for `open_committed`.
    """
    run, manifest, tokenizer = open_committed(node.federation, t)
    origin = f"committed in round {manifest.round} of run `{run.run}`"
    source, scores = Committed(run, manifest), scores_of(run, manifest)
    return NodeModel(node, source, tokenizer, manifest.round, "committed", origin, scores)


def scores_of(run: Run, manifest: RoundManifest) -> Scores:
    """The members' scores of a round's model. A rollback has those of the round whose files it names."""
    named = run.round(run.holder(manifest.round)) or manifest
    scores: list[tuple[str, Mapping[str, float]]] = sorted(named.evaluations.items())
    if "perplexity" in named.metrics:
        tokens = sum(each["tokens"] for each in named.evaluations.values())
        scores.append(("all", {"perplexity": named.metrics["perplexity"], "tokens": tokens}))
    return scores


def open_latest(federation: Federation) -> tuple[Run, int, Tokenizer]:
    """The run, the number of its last committed round, and its tokenizer, checked against the federation file.

    Raises:
        FederationError: the file's model or tokenizer is not the run's.
        PhotonError: no round is committed.
    """
    run = run_of(federation)
    birth, latest = run.run_manifest(), run.latest()
    if birth is None or latest is None:
        above = federation.parent
        remedy = f"Rounds of run '{above.run}' start it" if above else "Write: photon run"
        raise PhotonError(f"run '{federation.run}' has no rounds in {run.store.url} yet. {remedy}")
    tokenizer = load_tokenizer(federation.tokenizer)
    check_frozen(birth, federation, tokenizer.sha256)
    return run, latest, tokenizer


def open_committed(federation: Federation, t: int | None) -> tuple[Run, RoundManifest, Tokenizer]:
    """The run, one of its committed rounds, and its tokenizer, all checked against the federation file.

    Args:
        federation: federation file.
        t: number of the round; None for the last one.

    Raises:
        FederationError: the file's model or tokenizer is not the run's.
        PhotonError: the round is not committed, or photon gc has removed its model.
    """
    run, latest, tokenizer = open_latest(federation)
    manifest = run.round(latest if t is None else t)
    if manifest is None:
        raise PhotonError(f"round {t} of run '{federation.run}' is not committed; write --round 0 to {latest}")
    check_kept(run, manifest.round)
    return run, manifest, tokenizer
