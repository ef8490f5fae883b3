"""Checks of an update's manifest, before any byte of the update is read."""

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

MOMENTS = 2  # maximum number that an optimizer keeps of a parameter
METRICS_LIMIT = 1000
METRIC_LIMIT = 100  # characters of a name: the round's manifest repeats the names, and has to stay readable


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
        run: run of the round.
        base: manifest of round t-1.
        t, site: round and site that the update should belong to.
        update: manifest to check.
        most: maximum work of a site in a round.

    Raises:
        UpdateRejected: the manifest is wrong; the error names the site and the reason.
    """
    if (update.run, update.round, update.site) != (run.run, t, site):
        claim = f"run '{update.run}', round {update.round}, site '{update.site}'"
        raise UpdateRejected(site, f"it is an update of {claim}, not of round {t} of '{run.run}'")
    if update.base_sha256 != base.model_sha256:
        wrong, right = update.base_sha256[:16], base.model_sha256[:16]
        raise UpdateRejected(site, f"it starts from model {wrong}, but round {t - 1}'s model is {right}")
    rounded = base.download and not isinstance(update, PartialManifest)  # a region's mean has theta's own dtype
    sent = "BF16" if rounded else "F32"
    if update.base_dtype != sent:
        raise UpdateRejected(
            site, f"it starts from a model in {update.base_dtype}, but round {t - 1}'s model is sent in {sent}"
        )
    if update.previous_sha256 != run.round_sha256(t - 1):
        raise UpdateRejected(site, f"it follows a manifest of round {t - 1} that is not the committed one")
    check_counts(site, update, most)
    _check_metrics(site, update.metrics)
    check_key_layers(site, base, update)
    part = backbone(base).model
    expected = all_tensors(part)
    with blame(site):
        codec = get_codec(update.codec, ours=isinstance(update, PartialManifest))
        _check_tensors(site, expected, all_tensors(update.files), codec)
        check_files(update.files, len(expected) + 2 * len(part))


def check_moments(site: str, base: RoundManifest, update: UpdateManifest) -> None:
    """Refuse moments that are larger than any optimizer's for this model.

    `average_moments` checks that they are the ones that the optimizer has.
    """
    with blame(site):
        model = all_tensors(base.model)
        most = MOMENTS * sum(tensor_bytes(tensor) for tensor in model.values())
        size = sum(tensor_bytes(tensor) for tensor in all_tensors(update.moments).values())
        if size > most:
            raise PhotonError(f"its moments have {size} bytes; at most {most} are read")
        check_files(update.moments, 2 * MOMENTS * len(model))


def check_counts(site: str, update: UpdateManifest, most: Work) -> None:
    """Refuse tokens and local steps, which are the update's weight, that no site can train in a round."""
    for what, count, limit in (("tokens", update.tokens, most.tokens), ("steps", update.steps, most.steps)):
        if count <= 0:
            raise UpdateRejected(site, f"it claims {count} trained {what}; at least 1 is needed")
        if count > limit:
            raise UpdateRejected(site, f"it claims {count} trained {what}; at most {limit} are possible")


def _check_metrics(site: str, metrics: Mapping[str, float]) -> None:
    if len(metrics) > METRICS_LIMIT:
        raise UpdateRejected(site, f"it has {len(metrics)} metrics; at most {METRICS_LIMIT} are read")
    if missing := [m.name for m in reported("training") if m.required and m.name not in metrics]:
        raise UpdateRejected(site, f"its metrics have no {missing[0]}")
    for name, value in metrics.items():
        if len(name) > METRIC_LIMIT or not name.isprintable():
            shown = f"it names a metric '{name[:METRIC_LIMIT]}...' of {len(name)} characters"
            raise UpdateRejected(site, f"{shown}; a name is printable and has at most {METRIC_LIMIT}")
        if not math.isfinite(value):
            raise UpdateRejected(site, f"its metric '{name[:200]}' is {value}")


def _check_tensors(
    site: str, expected: Mapping[str, TensorEntry], sent: Mapping[str, TensorEntry], codec: Codec
) -> None:
    if missing := sorted(expected.keys() - sent.keys()):
        raise UpdateRejected(site, f"it has no tensor '{missing[0]}' ({len(missing)} missing)")
    if extra := sorted(sent.keys() - expected.keys()):
        raise UpdateRejected(site, f"the model has no tensor '{extra[0][:200]}' ({len(extra)} too many)")
    for name, tensor in sent.items():
        right = codec.shape(expected[name].shape)
        if tensor.shape != right:
            shown = ", ".join(map(str, tensor.shape))
            whose = "the model's is" if codec.lossless else f"the model's in codec {codec.name} is"
            raise UpdateRejected(site, f"tensor '{name}' has shape [{shown}], {whose} {list(right)}")
        if tensor.dtype != codec.dtype:
            raise UpdateRejected(site, f"tensor '{name}' is {tensor.dtype[:16]}; its codec writes {codec.dtype}")
