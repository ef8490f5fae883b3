"""What an update's manifest must say before any of its bytes are read."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from types import TracebackType

from photon_core.errors import CorruptFile, PhotonError, UpdateRejected
from photon_core.layout import Run
from photon_core.store import SHA256, check_path
from photon_core.tensor_reader import Array, Load
from photon_core.tensors import all_tensors
from photon_core.update.codec import Codec, get_codec
from schemas.manifests import PartialManifest, RoundManifest, TensorEntry, UpdateManifest

TOKEN_LIMIT = 10**15  # more than any site trains in a round; a claim beyond it would drown the others' weights
STEP_LIMIT = 10**9  # the largest count moves everyone's learning-rate schedule
METRICS_LIMIT = 1000
METRIC_LIMIT = 100  # characters of its name: the round's manifest repeats them, and has to stay readable


class blame:
    """Whatever is found wrong inside is this site's update being bad: UpdateRejected instead of `what`."""

    def __init__(self, site: str, what: type[PhotonError] = CorruptFile) -> None:
        self._site, self._what = site, what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._what):
            raise UpdateRejected(self._site, str(error)) from error


def blamed(site: str, loads: Iterator[Load]) -> Iterator[Load]:
    """Loads of a site's update; what is wrong with its bytes is that update being bad."""
    with blame(site):
        for load in loads:
            yield partial(_call, site, load)


def _call(site: str, load: Load) -> Array:
    with blame(site):
        return load()


def check_manifest(
    run: Run,
    base: RoundManifest,
    t: int,
    site: str,
    update: UpdateManifest,
    token_limit: int = TOKEN_LIMIT,
    step_limit: int = STEP_LIMIT,
) -> None:
    """Refuse an update that cannot belong to round t.

    Args:
        run: the run.
        base: the manifest of round t-1.
        t, site: whose update it should be.
        update: what its manifest says.
        token_limit, step_limit: most tokens and local steps that a site can have trained in a round.

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
    check_counts(site, update, token_limit, step_limit)
    _check_metrics(site, update.metrics)
    with blame(site, PhotonError):
        codec = get_codec(update.codec)
        for entry in update.files:
            check_path(entry.path)
            if not all(SHA256.fullmatch(digest) for digest in (entry.sha256, entry.blake3 or entry.sha256)):
                raise PhotonError(f"file '{entry.path}' has no sha256 or blake3")
        found = all_tensors(update.files)
    _check_tensors(site, all_tensors(base.model), found, codec)


def check_counts(site: str, update: UpdateManifest, token_limit: int, step_limit: int) -> None:
    """Refuse tokens and local steps, the update's weight, that nobody trains in a round."""
    for what, count, limit in (("tokens", update.tokens, token_limit), ("steps", update.steps, step_limit)):
        if count <= 0:
            raise UpdateRejected(site, f"it claims {_number(count)} trained {what}; at least 1 is needed")
        if count > limit:
            raise UpdateRejected(site, f"it claims {_number(count)} trained {what}; at most {limit} are possible")


def _check_metrics(site: str, metrics: Mapping[str, float]) -> None:
    if len(metrics) > METRICS_LIMIT:
        raise UpdateRejected(site, f"it brings {len(metrics)} metrics; at most {METRICS_LIMIT} are read")
    if "train_loss" not in metrics:
        raise UpdateRejected(site, "its metrics have no train_loss")
    for name, value in metrics.items():
        if len(name) > METRIC_LIMIT or not name.isprintable():
            said = f"it names a metric '{name[:METRIC_LIMIT]}...' of {len(name)} characters"
            raise UpdateRejected(site, f"{said}; a name is printable and has at most {METRIC_LIMIT}")
        if not math.isfinite(value):
            raise UpdateRejected(site, f"its metric '{name[:200]}' is {value}")


def _number(value: int) -> str:
    """A whole number as text; Python refuses to write those of thousands of digits."""
    return str(value) if abs(value) < 10**40 else f"about 2^{value.bit_length()}"


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
            shown = ", ".join(map(_number, tensor.shape[:8])) + (", ..." if len(tensor.shape) > 8 else "")
            whose = "the model's is" if codec.lossless else f"the model's in codec {codec.name} is"
            raise UpdateRejected(site, f"tensor '{name}' has shape [{shown}], {whose} {list(right)}")
        if tensor.dtype != codec.dtype:
            raise UpdateRejected(site, f"tensor '{name}' is {tensor.dtype[:16]}; its codec writes {codec.dtype}")
