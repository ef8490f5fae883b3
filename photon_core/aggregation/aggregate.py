"""One server's aggregation of a round: a check of every manifest, the sites' shares, one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from photon_core.aggregation.checks import check_manifest
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits, Pass, Source
from photon_core.aggregation.engine.streaming import run_pass
from photon_core.aggregation.noise import noise_on
from photon_core.aggregation.parts import backbone
from photon_core.aggregation.rules import Rules, model_rule
from photon_core.aggregation.weights import Shares
from photon_core.errors import PhotonError
from photon_core.run.members import ANY_WORK, Work
from photon_core.run.run import Run
from photon_core.tensors.shards import all_tensors
from photon_core.update.codecs.lossless import against
from photon_core.update.codecs.registry import Codec, get_codec
from schemas.manifests import FileEntry, PartialManifest, RoundManifest, UpdateManifest
from schemas.sections.server import Server


@dataclass(frozen=True)
class Aggregate:
    """A round's result: written, not committed.

    Args:
        model, optimizer: entries of the files, for round.json.
        weights: weights of the sites' objectives, which sum to 1 (aggregation/weights.py).
        norms: norms and cosines by metric name: pseudo_gradient_norm, model_norm, step_norm (of the new model -
            theta); for every site delta_norm/<site> (of theta - theta_k) and cosine/<site> (of that with the mean
            pseudo-gradient; 0 where one of them is 0); for at most 16 sites cosine_pair/<site>/<site>.
        partials: hashes of the regions' means that were combined, by path of partial.json (aggregation/tree.py).
    """

    model: list[FileEntry]
    optimizer: list[FileEntry]
    weights: dict[str, float]
    norms: dict[str, float] = field(default_factory=dict)
    partials: dict[str, str] = field(default_factory=dict)


def aggregate(
    run: Run,
    t: int,
    updates: Mapping[str, UpdateManifest],
    server: Server,
    *,
    most: Work = ANY_WORK,
    limits: Limits = DEFAULT_LIMITS,
    lr_scale: float = 1.0,
) -> Aggregate:
    """theta' = ServerOpt(theta, mean of theta_k): write round t's model and optimizer shards.

    Of a model with key layers, the backbone's; aggregation/key_layers.py writes the others.

    The files are orphans until the caller commits round.json.

    Args:
        run, t: run and round; the sites started from round t-1's model.
        updates: committed update of each site.
        server: server optimizer and its settings.
        most: maximum work of a site in a round.
        limits: resources of the pass.
        lr_scale: learning-rate factor that the guard has applied to server.lr already.

    Raises:
        UpdateRejected: one site's update is bad; drop that site and call again.
        Doubt: one site's update cannot be read; the site, the machine or the store may be at fault.
        CorruptFile: the old model or the optimizer's state is damaged.
    """
    base = base_of(run, t)
    if not updates:
        raise PhotonError(f"round {t} cannot be aggregated: there are no updates")
    sources = sources_of(run, base, t, updates, most)
    clean = {site: source.update for site, source in sources.items()}
    elements = sum(math.prod(tensor.shape) for tensor in all_tensors(backbone(base).model).values())
    shares = Shares(server, clean, elements)
    noise = noise_on(run, base, clean, shares.shares, server.noise_multiplier)
    rules = Rules(model_rule(server, shares), noise=noise)
    one = Pass(run, t, backbone(base), sources, rules, server, run.round_dir(t), lr_scale)
    result = run_pass(one, limits)
    shares.verify(result.norms)
    return Aggregate(result.model, result.optimizer, shares.weights, result.norms)


def base_of(run: Run, t: int) -> RoundManifest:
    """The manifest of round t-1. Raises PhotonError if it is not committed."""
    base = run.round(t - 1)
    if base is None:
        raise PhotonError(f"round {t} cannot be aggregated: round {t - 1} is not committed")
    return base


def sources_of(
    run: Run,
    base: RoundManifest,
    t: int,
    updates: Mapping[str, UpdateManifest],
    most: Work,
    folders: Mapping[str, str] | None = None,
) -> dict[str, Source]:
    """The sources of a pass, in the order of names.

    Args:
        run, base, t: run, manifest of the previous round, and round.
        updates: updates by name.
        most: maximum work behind one update.
        folders: folders of the updates that are not in their site's folder.

    Raises:
        UpdateRejected: the manifest of an update is bad.
    """
    names = sorted(updates)
    for name in names:
        check_manifest(run, base, t, name, updates[name], most)
    at = folders or {}
    places = {name: at.get(name) or run.site_dir(t, name, updates[name].attempt) for name in names}
    return {name: Source(updates[name], places[name], _codec(updates[name])) for name in names}


def _codec(update: UpdateManifest) -> Codec:
    return against(get_codec(update.codec, ours=isinstance(update, PartialManifest)), update.base_dtype)
