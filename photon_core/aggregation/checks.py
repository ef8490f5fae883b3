"""What an update's manifest must say before any of its bytes are read."""

import math
from collections.abc import Mapping

from photon_core.aggregation.blame import blame
from photon_core.aggregation.parts import backbone, check_key_layers
from photon_core.errors import PhotonError, UpdateRejected
from photon_core.evidence.metrics import reported
from photon_core.run.members import ANY_WORK, Work
from photon_core.run.run import Run
from photon_core.tensors.container import tensor_bytes
from photon_core.tensors.shards import all_tensors, check_files
from photon_core.update.codecs.registry import Codec, get_codec
from schemas.manifests import PartialManifest, RoundManifest, TensorEntry, UpdateManifest

MOMENTS = 2  # most that an optimizer keeps of a parameter
METRICS_LIMIT = 1000
METRIC_LIMIT = 100  # characters of its name: the round's manifest repeats them, and has to stay readable


def check_manifest(
    run: Run,
    base: RoundManifest,
    t: int,
    site: str,
    update: UpdateManifest,
    most: Work = ANY_WORK,
) -> None:
    """Refuse an update that cannot belong to round t.

    Args:
        run: the run.
        base: the manifest of round t-1.
        t, site: whose update it should be.
        update: what its manifest says.
        most: work that a site can have done in a round.

    Raises:
        UpdateRejected: naming the site and the reason.
    """
    if (update.run, update.round, update.site) != (run.run, t, site):
        claim = f"run '{update.run}', round {update.round}, site '{update.site}'"
        raise UpdateRejected(site, f"it is an update of {claim}, not of round {t} of '{run.run}'")
    if update.base_sha256 != base.model_sha256:
        wrong, right = update.base_sha256[:16], base.model_sha256[:16]
        raise UpdateRejected(site, f"it starts from model {wrong}, but round {t - 1}'s model is {right}")
    rounded = base.download and not isinstance(update, PartialManifest)  # a region's mean is of theta's own kind
    if update.base_dtype != ("BF16" if rounded else "F32"):
        raise UpdateRejected(
            site, f"it starts from a model in {update.base_dtype}, as round {t - 1}'s is not sent"
        )
    if update.previous_sha256 != run.round_sha256(t - 1):
        raise UpdateRejected(site, f"it follows another manifest of round {t - 1} than the committed one")
    check_counts(site, update, most)
    _check_metrics(site, update.metrics)
    check_key_layers(site, base, update)
    part = backbone(base).model
    expected = all_tensors(part)
    with blame(site):
        codec = get_codec(update.codec, ours=isinstance(update, PartialManifest))
        found = all_tensors(update.files)
        _check_tensors(site, expected, found, codec)
        check_files(update.files, len(expected) + 2 * len(part))


def check_moments(site: str, base: RoundManifest, update: UpdateManifest) -> None:
    """Refuse moments larger than any optimizer's of this model; `average_moments` knows which there have to be."""
    with blame(site):
        model = all_tensors(base.model)
        most = MOMENTS * sum(tensor_bytes(tensor) for tensor in model.values())
        found = sum(tensor_bytes(tensor) for tensor in all_tensors(update.moments).values())
        if found > most:
            raise PhotonError(f"its moments have {found} bytes; at most {most} are read")
        check_files(update.moments, 2 * MOMENTS * len(model))


def check_counts(site: str, update: UpdateManifest, most: Work) -> None:
    """Refuse tokens and local steps, the update's weight, that nobody trains in a round."""
    for what, count, limit in (("tokens", update.tokens, most.tokens), ("steps", update.steps, most.steps)):
        if count <= 0:
            raise UpdateRejected(site, f"it claims {count} trained {what}; at least 1 is needed")
        if count > limit:
            raise UpdateRejected(site, f"it claims {count} trained {what}; at most {limit} are possible")


def _check_metrics(site: str, metrics: Mapping[str, float]) -> None:
    if len(metrics) > METRICS_LIMIT:
        raise UpdateRejected(site, f"it brings {len(metrics)} metrics; at most {METRICS_LIMIT} are read")
    if missing := [m.name for m in reported("training") if m.required and m.name not in metrics]:
        raise UpdateRejected(site, f"its metrics have no {missing[0]}")
    for name, value in metrics.items():
        if len(name) > METRIC_LIMIT or not name.isprintable():
            said = f"it names a metric '{name[:METRIC_LIMIT]}...' of {len(name)} characters"
            raise UpdateRejected(site, f"{said}; a name is printable and has at most {METRIC_LIMIT}")
        if not math.isfinite(value):
            raise UpdateRejected(site, f"its metric '{name[:200]}' is {value}")


def _check_tensors(
    site: str, expected: Mapping[str, TensorEntry], found: Mapping[str, TensorEntry], codec: Codec
) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise UpdateRejected(site, f"it has no tensor '{missing[0]}' ({len(missing)} missing)")
    if extra := sorted(found.keys() - expected.keys()):
        raise UpdateRejected(site, f"the model has no tensor '{extra[0][:200]}' ({len(extra)} too many)")
    for name, tensor in found.items():
        right = codec.shape(expected[name].shape)
        if tensor.shape != right:
            shown = ", ".join(map(str, tensor.shape))
            whose = "the model's is" if codec.lossless else f"the model's in codec {codec.name} is"
            raise UpdateRejected(site, f"tensor '{name}' has shape [{shown}], {whose} {list(right)}")
        if tensor.dtype != codec.dtype:
            raise UpdateRejected(site, f"tensor '{name}' is {tensor.dtype[:16]}; its codec writes {codec.dtype}")
