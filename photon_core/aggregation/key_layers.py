"""The key layers of a round: attention over a federation's own and its members' (WorldLM, lines 16 and 17).

Each layer takes two streaming passes: the scores, then the weighted mean. The weights are committed in between,
so that a restart, on any machine, produces the same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from photon_core.aggregation.attention import attend, token_shares
from photon_core.aggregation.choice import UNCHOSEN, chosen_in, settled
from photon_core.aggregation.engine.inputs import Limits, Pass, Source
from photon_core.aggregation.engine.streaming import run_pass
from photon_core.aggregation.noise import noise_on
from photon_core.aggregation.parts import key_layer, of_layer
from photon_core.aggregation.rules import Rules, WeightedMean
from photon_core.aggregation.scoring import Row, layer_sums
from photon_core.errors import NotFinite, StepOverflow, StoreConflict, UpdateRejected
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run
from photon_core.tensors.shards import all_tensors
from photon_core.update.codecs.lossless import Plain
from schemas.manifests import Attention, AttentionManifest, FileEntry, RoundManifest, UpdateManifest
from schemas.sections.server import Guard, Server
from schemas.sections.worldlm import WorldLM

OWN = "own"
MEAN = Server()  # a plain mean: the server's optimizer takes no step for key layers


@dataclass(frozen=True)
class KeyLayers:
    """The key layers of a round, written but not committed.

    Args:
        files: files of the layers, ordered by layer.
        attention: layer -> its attention.
        squares: sum of the squares of all elements, for the model's norm.
    """

    files: list[FileEntry] = field(default_factory=list)
    attention: dict[str, Attention] = field(default_factory=dict)
    squares: float = 0.0

    @property
    def chosen(self) -> str:
        """The option that was chosen; empty if none was compared with others."""
        return chosen_in(self.attention)

    @property
    def norms(self) -> dict[str, float]:
        """key_distance/<member>: of its key layers from those that were sent."""
        return {f"key_distance/{name}": distance for name, distance in _distances(self.attention).items()}


def attend_members(
    run: Run,
    base: RoundManifest,
    updates: Mapping[str, UpdateManifest],
    worldlm: WorldLM,
    server: Server,
    limits: Limits,
    option: str = UNCHOSEN,
) -> KeyLayers:
    """Write the key layers of the round after `base`.

    Args:
        run, base: run, and manifest of round t-1, whose key layers the members received.
        updates: checked updates of the members.
        worldlm, server: settings of the federation.
        limits: limits of a pass.
        option: option of `temperature: auto` (aggregation/choice.py); not used otherwise.

    Raises:
        UpdateRejected: a member's key layers are damaged, not finite, or far from those that it received. Exclude
            the member and call again.
        CorruptFile: the key layers of `base` are.
    """
    worldlm = settled(worldlm, option)
    attention = _committed(run, base, updates, worldlm, limits) if base.key_layers else {}
    _refuse_far(attention, server.guard)
    files, squares = list[FileEntry](), 0.0
    for layer, found in attention.items():
        before = key_layer(base, layer)
        t = base.round + 1
        sources = _sources(run, base, layer, updates)
        rules = _rules(run, base, updates, found, server)
        one = Pass(run, t, before, sources, rules, MEAN, run.round_dir(t), look=False, stem=f"{layer}-")
        try:
            result = run_pass(one, limits)
        except (NotFinite, StepOverflow) as error:
            name, _ = max(zip(found.rows[1:], found.distances[1:], strict=True), key=lambda pair: pair[1])
            reason = f"key layer '{layer}' holds values so large that the mean is not finite"
            raise UpdateRejected(name, reason) from error
        files += result.model
        squares += result.norms["model_norm"] ** 2
    return KeyLayers(files, attention, squares)


def _rules(
    run: Run, base: RoundManifest, updates: Mapping[str, UpdateManifest], found: Attention, server: Server
) -> Rules:
    first, *others = found.weights
    shares = dict(zip(found.rows[1:], others, strict=True))
    noise = noise_on(run, base, updates, shares, server.noise_multiplier)
    return Rules(WeightedMean(tuple(others), first), noise=noise)


def _distances(attention: Mapping[str, Attention]) -> dict[str, float]:
    """Member -> distance of all its key layers from the federation's."""
    found: dict[str, float] = {}
    for layer in attention.values():
        for name, distance in zip(layer.rows[1:], layer.distances[1:], strict=True):
            found[name] = math.hypot(found.get(name, 0.0), distance)
    return found


def _refuse_far(attention: Mapping[str, Attention], guard: Guard) -> None:
    """Refuse a member whose key layers are of another size than the federation's.

    Their weight does not depend on their size, so the mean would take it over, however few members there are.

    Raises:
        UpdateRejected: the distance is over norm_factor times the norm of the federation's key layers.
    """
    norm = math.hypot(*(layer.norm for layer in attention.values()))
    for name, distance in _distances(attention).items():
        if guard.norm_factor is not None and norm and distance > guard.norm_factor * norm:
            found = f"its key layers have distance {distance:.4g} from those that were sent"
            raise UpdateRejected(name, f"{found}, over {guard.norm_factor:g} times their norm {norm:.4g}")


def _sources(
    run: Run, base: RoundManifest, layer: str, updates: Mapping[str, UpdateManifest]
) -> dict[str, Source]:
    return {
        name: Source(of_layer(update, base, layer), run.site_dir(update.round, name, update.attempt), Plain())
        for name, update in sorted(updates.items())
    }


def _committed(
    run: Run, base: RoundManifest, updates: Mapping[str, UpdateManifest], worldlm: WorldLM, limits: Limits
) -> dict[str, Attention]:
    """The committed weights of this pool; commits them if there are none. The first writer's are used."""
    hashes = {name: run.update_sha256(update.round, name, update.attempt) for name, update in updates.items()}
    asked = worldlm.model_dump(mode="json", include={"attention", "temperature", "own_row", "weights"})
    inputs = sha256_bytes(canonical_json([base.model_sha256, hashes, asked]))
    place = Place(PlaceKind.ATTENTION, run.run, base.round + 1, work=inputs[:32])
    if (known := run.load(AttentionManifest, place)) is None:
        layers = {layer: _attention(run, base, layer, updates, worldlm, limits) for layer in base.key_layers}
        mine = AttentionManifest(run=run.run, round=base.round + 1, inputs=inputs, layers=layers)
        try:
            run.commit_manifest(place, mine)
        except StoreConflict:
            pass
        known = run.load(AttentionManifest, place)
        assert known is not None
    return known.layers


def _attention(
    run: Run,
    base: RoundManifest,
    layer: str,
    updates: Mapping[str, UpdateManifest],
    worldlm: WorldLM,
    limits: Limits,
) -> Attention:
    own, sources = key_layer(base, layer).model, _sources(run, base, layer, updates)
    rows = [Row(run.store, run.files_dir(base.round), own)]
    rows += [Row(run.store, source.folder, source.update.files, name) for name, source in sources.items()]
    shapes = {name: tensor.shape for name, tensor in all_tensors(own).items()}
    shares = token_shares([updates[name].tokens for name in sources]) if worldlm.weights == "tokens" else None
    return attend([OWN, *sources], layer_sums(shapes, rows, limits=limits), worldlm, shares)
