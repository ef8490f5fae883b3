"""The two states of a node's model: as received at its next entry, and as trained. Nothing is committed.

    received: the model with which the node would enter its next round. Backbone of its federation's last committed
              round (a site) or its parent's (a federation); key layers by attention over its own, theirs and
              routed residuals.
    trained:  what the node returned. A federation's last trained round; a site's model after its local steps.

The file's own federation has its last committed round as received; so has a root as trained, too.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from photon_core.aggregation.choice import UNCHOSEN, chosen_in
from photon_core.aggregation.entry import Entered
from photon_core.aggregation.fit import look_ahead, next_call
from photon_core.aggregation.parts import backbone
from photon_core.aggregation.routing import residuals_for
from photon_core.errors import CorruptFile, FederationError, PhotonError
from photon_core.evidence.metrics import perplexity
from photon_core.export.model import (
    NodeModel,
    Scores,
    committed_model,
    open_committed,
    open_latest,
    scores_of,
)
from photon_core.export.node import Node
from photon_core.export.source import Committed, Local, Source
from photon_core.run.history import check_kept, history, ranges
from photon_core.run.line import last_updates, line
from photon_core.run.run import Run
from photon_core.training.entering import enter_with
from photon_core.update.restore import is_exact, write_trained
from schemas.manifests import RoundManifest, UpdateManifest


def node_model(node: Node, trained: bool, t: int | None, folder: Path) -> NodeModel:
    """The model of a node.

    Args:
        node: the node.
        trained: flag: as trained instead of as received.
        t: number of a round in the run of the node's federation; None for the newest that has such a model.
        folder: folder for files that no round has committed; the model is readable while it exists.

    Raises:
        FederationError: the node has no such model in round t, or its file is not the run's.
        PhotonError: the node has no such model yet, or photon gc has removed its files.
        CorruptFile: a file does not match its manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if node.view is not None:
        return _site_trained(node, t, folder) if trained else _site_received(node, t, folder)
    if trained and node.federation.parent is not None:
        return _federation_trained(node, t)
    if node.parent is None:
        return committed_model(node, t)
    return _entry_at(node, t) if t is not None else _federation_received(node, folder)


def _federation_received(node: Node, folder: Path) -> NodeModel:
    """With which it would enter its parent's next round, or has entered that round, if it is open."""
    assert node.parent is not None
    federation = node.federation
    run, latest, tokenizer = open_latest(federation)
    above, base, _ = open_committed(node.parent.federation, None)
    t = base.round + 1
    found = look_ahead(run, federation, next_call(node.parent.federation, node.names[-1], t), folder)
    into = f"round {t} of run `{above.run}`"
    if not isinstance(found, Entered):
        origin = f"as received: round {found.round} of run `{run.run}`, its entry into {into}"
        return NodeModel(node, Committed(run, found), tokenizer, found.round, "received", origin)
    files = backbone(base).model
    connections = federation.aggregation.connections
    paths = above.store.fetch_all(files, above.files_dir(base.round), folder / "committed", connections)
    source = Local([*paths, *found.paths], [*files, *found.files])
    origin = f"as received: the model with which it would enter {into}"
    return NodeModel(node, source, tokenizer, latest, "received", origin)


def _entry_at(node: Node, t: int) -> NodeModel:
    """The entry of a federation that is its round t."""
    run, manifest, tokenizer = open_committed(node.federation, t)
    above = manifest.parent
    if above is None:
        entries = _rounds(history(run), lambda each: each.kind == "entry")
        raise FederationError(
            f"--round {t}: round {t} of run '{run.run}' is not an entry, and '{node.name}' has received no model "
            f"in it; write --trained, or the number of an entry: {entries}"
        )
    origin = f"as received: round {t} of run `{run.run}`, its entry into round {above.round} of run `{above.run}`"
    return NodeModel(node, Committed(run, manifest), tokenizer, t, "received", origin)


def _federation_trained(node: Node, t: int | None) -> NodeModel:
    run, latest, tokenizer = open_latest(node.federation)
    manifest = next(line(run, latest)) if t is None else open_committed(node.federation, t)[1]
    if t is not None and (manifest.kind != "train" or not t):
        known = _rounds(history(run), lambda each: each.kind == "train" and each.round > 0)
        raise FederationError(
            f"--round {t}: round {t} of run '{run.run}' has trained nothing; write the number of a trained round: "
            f"{known}"
        )
    if not manifest.round:
        raise PhotonError(
            f"run '{run.run}' has trained no round yet; without --trained, it is the model as received"
        )
    check_kept(run, manifest.round)
    source = Committed(run, manifest)
    origin = f"as trained: the result of round {manifest.round} of run `{run.run}`"
    return NodeModel(node, source, tokenizer, manifest.round, "trained", origin, scores_of(run, manifest))


def _site_received(node: Node, t: int | None, folder: Path) -> NodeModel:
    """With which it would train, or has trained, in the round after t."""
    view = node.view
    assert view is not None
    run, base, tokenizer = open_committed(node.federation, t)
    source: Source = Committed(run, base)
    if base.key_layers:
        connections = node.federation.aggregation.connections
        committed = run.store.fetch_all(base.model, run.files_dir(base.round), folder / "committed", connections)
        received = residuals_for(run, node.federation, base.round + 1, view.name)
        option = _option(run, base.round + 1, view.name)
        entry = enter_with(run, view, base, received, committed, folder / "entered", option)
        source = Local(entry.files, entry.entries)
    origin = f"as received: the model with which it enters round {base.round + 1} of run `{run.run}`"
    return NodeModel(node, source, tokenizer, base.round, "received", origin)


def _option(run: Run, t: int, site: str) -> str:
    """The committed option of `temperature: auto` with which a site entered round t; UNCHOSEN if there is none."""
    manifest = run.round(t)
    used = manifest and manifest.updates.get(site)
    update = run.update(t, site, used.attempt) if used else None
    return (update and chosen_in(update.entry)) or UNCHOSEN


def _site_trained(node: Node, t: int | None, folder: Path) -> NodeModel:
    run, latest, tokenizer = open_latest(node.federation)
    update = _update_of(node, run, latest, t)
    base = run.round(update.round - 1)
    assert base is not None, "the round that holds the update follows it"
    for held in (base.round, update.round):
        check_kept(run, held)
    size = node.federation.aggregation.shard_bytes
    connections = node.federation.aggregation.connections
    files = write_trained(run, base, update, folder, size)
    place = run.site_dir(update.round, update.site, update.attempt)
    layers = run.store.fetch_all(update.key_layers, place, folder / "layers", connections)
    source = Local([*(folder / entry.path for entry in files), *layers], [*files, *update.key_layers])
    origin = f"as trained: the result of its local steps in round {update.round} of run `{run.run}`, "
    origin += _as_sent(update)
    return NodeModel(node, source, tokenizer, update.round, "trained", origin, _own_scores(update))


def _update_of(node: Node, run: Run, latest: int, t: int | None) -> UpdateManifest:
    """The site's newest aggregated update, or that of round t."""
    name, rounds = node.names[-1], [] if t is None else history(run)
    if t is not None and (t > latest or name not in rounds[t].updates):
        known = _rounds(rounds, lambda each: name in each.updates)
        raise FederationError(
            f"--round {t}: round {t} of run '{run.run}' has no update of '{node.name}'; write the number of one "
            f"that has: {known}"
        )
    last = last_updates(run, latest if t is None else t).get(name)
    if last is None:
        raise PhotonError(
            f"no round of run '{run.run}' has an update of '{node.name}' yet; without --trained, it is the model "
            "as received"
        )
    update = run.update(last.round, name, last.attempt)
    if update is None:
        where = run.store.locate(run.site_dir(last.round, name, last.attempt))
        raise CorruptFile(f"{where} has no update.json, though round {last.round} has aggregated it")
    return update


def _as_sent(update: UpdateManifest) -> str:
    """Whether an update holds the site's model whole, for people."""
    if is_exact(update):
        return "bit for bit"
    changed = [f"clipped to {update.clip_norm:g}"] if update.clip_norm is not None else []
    changed += [f"with noise {update.noise_multiplier:g}"] if update.noise_multiplier else []
    return f"as it was sent, not as it was at the site: {', '.join([*changed, f'codec {update.codec}'])}"


def _own_scores(update: UpdateManifest) -> Scores:
    """The scores that the site reports for its model, before clipping, noise and codec."""
    loss, tokens = update.metrics.get("valid_loss"), update.metrics.get("valid_tokens")
    if loss is None or tokens is None or not is_exact(update):
        return ()
    return [(update.site, {"perplexity": perplexity(loss), "tokens": tokens})]


def _rounds(rounds: Iterable[RoundManifest], holds: Callable[[RoundManifest], bool]) -> str:
    return ranges([manifest.round for manifest in rounds if holds(manifest)]) or "none yet"
