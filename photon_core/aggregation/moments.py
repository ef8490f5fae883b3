"""The mean of the sites' optimizer moments, from which all sites start the next round.

Moments and parameters have the same kind of mean: a bad site that a median or a trimmed mean keeps out of the
model must not reach the other sites through their optimizers. The mean is computed in bounded memory, several
pieces in parallel, each in the order of the sites' names.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from photon_core.aggregation.blame import blame, blamed
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits
from photon_core.aggregation.engine.threads import Threads
from photon_core.aggregation.moment_bounds import (
    FIRST,
    RATIO_LIMIT,
    SECOND,
    allowed_ratio,
    check_ratios,
    check_sizes,
    growths,
    largest_ratios,
    medians,
    usual_ratio,
)
from photon_core.aggregation.rules import Rule
from photon_core.errors import UpdateRejected
from photon_core.model.key_layers import key_layers, names_in
from photon_core.model.shapes import moment_shapes
from photon_core.run.run import Run
from photon_core.store.open_ranges import OpenRanges
from photon_core.tensors.container import SENT_AS
from photon_core.tensors.numerics import dots, from_bfloat16, to_bfloat16
from photon_core.tensors.reader import Load, Piece, TensorReader, cut
from photon_core.tensors.shards import all_tensors, check_files, shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.federation import Federation
from schemas.manifests import FileEntry, TensorEntry, UpdateManifest
from schemas.sections.local import Optimizer
from schemas.sections.model import Model

Float32 = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
KINDS = 2  # maximum number of moments that an optimizer keeps of one parameter
LEAST_PIECE, MOST_PIECE = 1 << 12, 1 << 17  # elements of a site
CACHED = 1 << 21  # elements of a piece, all sites
TOGETHER = 1 << 22  # bytes of one request to a server
FOLDER = "moments/"
ONES = np.ones(MOST_PIECE, np.float32)


def moments_for(
    files: Sequence[FileEntry], model: Model, optimizer: str, key_layers: Mapping[str, list[str]] | None = None
) -> list[FileEntry]:
    """The files of a round's averaged moments, for the sites to start from. Key layers have none.

    The list is empty if the moments belong to another optimizer, because the federation file has changed. Each
    site then resets its optimizer state, and reports it.
    """
    shapes = {name: tensor.shape for name, tensor in all_tensors(files).items()}
    return list(files) if shapes == moment_shapes(model, optimizer, names_in(key_layers or {})) else []


@dataclass(frozen=True)
class Moments:
    """A round's averaged moments.

    Args:
        files: entries of the files.
        sizes: median size over the sites by moment: the norm, or the root of the sum for a mean of squares.
        ratio: largest possible ratio of the square of a first moment to its second moment.
    """

    files: list[FileEntry] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    ratio: float = 0.0


@dataclass(frozen=True)
class MomentSpec:
    """The moments that a round averages.

    Args:
        model, optimizer: sections of the federation file; they determine the moments and their bounds.
        dtype: dtype of the mean, float32 or bfloat16; a site's moments may have either.
        key_layers: parameters by key layer; their moments stay at their node.
    """

    model: Model
    optimizer: Optimizer
    dtype: str = "float32"
    key_layers: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, federation: Federation) -> "MomentSpec":
        update, local = federation.update, federation.local
        return cls(federation.model, local.optimizer, update.moments_dtype, key_layers(federation))

    @property
    def shapes(self) -> Shapes:
        return moment_shapes(self.model, self.optimizer.name, names_in(self.key_layers))

    def fits(self, files: Sequence[FileEntry]) -> bool:
        """Whether these files hold such moments, and no others. Raises CorruptFile if they hold one twice."""
        return bool(moments_for(files, self.model, self.optimizer.name, self.key_layers))


def average_moments(
    run: Run,
    t: int,
    updates: Mapping[str, UpdateManifest],
    rule: Rule,
    spec: MomentSpec,
    limits: Limits = DEFAULT_LIMITS,
) -> Moments:
    """Write round t's moments. The files are orphans until the caller commits round.json.

    Args:
        run, t: run and round.
        updates: committed update of each site.
        rule: rule that combines the sites' moments.
        spec: moments to average.
        limits: resources of the pass.

    Raises:
        UpdateRejected: a site's moments are missing, damaged, of other shapes, not finite, so large that the mean
            is not finite, negative although they are means of squares, or out of bounds (see moment_bounds.py).
    """
    shapes, optimizer = spec.shapes, spec.optimizer
    for site in sorted(updates):
        _check(site, updates[site], shapes)
    base = run.round(t - 1)
    known = base and moments_for(base.moments, spec.model, optimizer.name, spec.key_layers)
    last = base if known else None
    allowed = allowed_ratio(optimizer, t, last)
    with ExitStack() as stack:
        team = Threads.start(stack, run.store.is_local, limits)
        sources = _Sources(run, t, updates, shapes, team, limits.memory_bytes, stack)
        writers = {
            kind: stack.enter_context(_writer(run, t, kind, spec, limits.shard_bytes, team))
            for kind in sources.kinds
        }
        calls = (
            partial(_mean, sources.sites, piece.name, loads, rule, allowed) for piece, loads in sources.loads()
        )
        results = stack.enter_context(closing(team.results(calls, sources.cancel)))
        ratio, sums = 0.0, {name: np.zeros(len(updates)) for name in shapes}
        for piece, done in zip(sources.pieces(), results, strict=True):
            ratio = max(ratio, done.ratio)
            for kind, mean in done.means.items():
                name = f"{kind}.{piece.name}"
                sums[name] += done.sums[kind]
                writers[kind].write(name, to_bfloat16(mean) if spec.dtype == "bfloat16" else mean)
        sources.verify()
        sizes = {name: np.sqrt(of_sites).tolist() for name, of_sites in sums.items()}
        growth = growths(optimizer, [_steps(run, updates[site]) for site in sources.sites])
        check_sizes(sources.sites, sizes, last.moment_sizes if last else {}, growth)
        files = [entry for writer in writers.values() for entry in writer.close()]
        return Moments(files, medians(sizes), min(ratio if allowed == math.inf else allowed, RATIO_LIMIT))


def _writer(run: Run, t: int, kind: str, spec: MomentSpec, shard_bytes: int, team: Threads) -> ShardWriter:
    """The writer of one kind of moments. Each kind has its own files, to be read and written in parallel."""
    own = {name: shape for name, shape in spec.shapes.items() if _kind(name) == kind}
    tensors = {name: TensorEntry(dtype=SENT_AS[spec.dtype], shape=shape) for name, shape in own.items()}
    plan = shard_plan(tensors, shard_bytes)
    return ShardWriter(run.store, run.round_dir(t), f"{FOLDER}{kind}-", plan, team.writers)


class _Sources:
    """The sites' moments, piece by piece in the order of names, with all moments of a parameter together."""

    def __init__(
        self,
        run: Run,
        t: int,
        updates: Mapping[str, UpdateManifest],
        shapes: Shapes,
        team: Threads,
        memory: int,
        stack: ExitStack,
    ) -> None:
        self.sites = sorted(updates)
        self.kinds = sorted({_kind(name) for name in shapes})
        self._shapes, self._team, self._stack = shapes, team, stack
        streams = KINDS * len(self.sites)
        self._elements = max(LEAST_PIECE, min(MOST_PIECE, CACHED // streams))
        self._together = min(TOGETHER, memory // (streams * (team.ahead + team.side_by_side + 1)))
        self._readers: dict[str, TensorReader] = {}
        opened = OpenRanges()
        for site in self.sites:
            folder = run.site_dir(t, site, updates[site].attempt)
            with blame(site):
                reader = TensorReader(run.store, folder, updates[site].moments, team.readers, opened)
            self._readers[site] = stack.enter_context(reader)

    def pieces(self, kind: str = "") -> Iterator[Piece]:
        """The pieces of the parameters that have this kind of moment; of all parameters by default."""
        names = {_parameter(name): name for name in self._shapes if kind in ("", _kind(name))}
        for parameter in sorted(names):
            yield from cut(parameter, 0, math.prod(self._shapes[names[parameter]]), self._elements)

    def loads(self) -> Iterator[tuple[Piece, dict[str, list[Load]]]]:
        """Every piece, with the loads of all sites by kind of moment."""
        streams = {kind: [self._stream(kind, site) for site in self.sites] for kind in self.kinds}
        for piece in self.pieces():
            kinds = [kind for kind in self.kinds if f"{kind}.{piece.name}" in self._shapes]
            yield piece, {kind: [next(stream) for stream in streams[kind]] for kind in kinds}

    def verify(self) -> None:
        for site, reader in self._readers.items():
            with blame(site):
                reader.verify()

    def cancel(self) -> None:
        for reader in self._readers.values():
            reader.cancel()

    def _stream(self, kind: str, site: str) -> Iterator[Load]:
        team = self._team
        loads = self._readers[site].loads(
            self.pieces(kind), f"{kind}.", team.ahead, team.side_by_side, self._together
        )
        return blamed(site, self._stack.enter_context(closing(loads)))


class _Done(NamedTuple):
    """A computed piece of a parameter: the mean by kind of moment, and each site's sum over its elements."""

    means: dict[str, Float32]
    sums: dict[str, NDArray[np.float64]]
    ratio: float


def _mean(
    sites: Sequence[str],
    parameter: str,
    loads: Mapping[str, Sequence[Load]],
    rule: Rule,
    allowed: float,
) -> _Done:
    whole, rows, sums, ratio = {}, {}, {}, 0.0
    for kind, of_sites in loads.items():
        first, *others = (_float32(site, load()) for site, load in zip(sites, of_sites, strict=True))
        whole[kind] = np.stack([np.zeros_like(first), first, *others])  # a rule's first row is the old value
        rows[kind] = whole[kind][1:]
        sums[kind] = _sums(sites, kind, parameter, rows[kind])
    paired = FIRST in rows and SECOND in rows
    if paired:
        check_ratios(sites, parameter, rows[FIRST], rows[SECOND], allowed)
    means = {kind: _combined(sites, f"{kind}.{parameter}", stacked, rule) for kind, stacked in whole.items()}
    if paired:
        most = allowed if allowed < math.inf else usual_ratio(rows[FIRST], rows[SECOND])
        if most < math.inf:
            least = means[FIRST] * np.float32(1 / most)
            least *= means[FIRST]
            np.maximum(means[SECOND], least, out=means[SECOND])  # rounding, or one site, may have made it smaller
        if allowed == math.inf:
            ratio = float(largest_ratios(means[FIRST], means[SECOND]))
    return _Done(means, sums, ratio)


def _combined(sites: Sequence[str], name: str, rows: Float32, rule: Rule) -> Float32:
    out: Float32 = np.empty_like(rows[0])
    with np.errstate(over="ignore", invalid="ignore"):
        rule(rows, out, np.empty_like(rows))
        finite = math.isfinite(float(dots(out[None], out)[0]))
    if not finite:
        site = sites[int(np.argmax(np.abs(rows[1:]).max(axis=1)))]
        raise UpdateRejected(site, f"the optimizer's moment '{name}' is so large that the mean is not finite")
    if _kind(name) == SECOND:
        np.maximum(out, 0, out=out)  # rounding may have made it negative
    return out


def _sums(sites: Sequence[str], kind: str, parameter: str, rows: Float32) -> NDArray[np.float64]:
    """The sum of each row's squares; of the row itself, if it is a mean of squares."""
    with np.errstate(over="ignore", invalid="ignore"):
        totals = dots(rows, ONES[: rows.shape[1]] if kind == SECOND else rows)
    least = rows.min(axis=1, initial=0) if kind == SECOND else np.zeros(len(rows))
    for site, total, smallest in zip(sites, totals, least, strict=True):
        if not math.isfinite(total) or smallest < 0:
            raise UpdateRejected(site, f"the optimizer's moment '{kind}.{parameter}' is not finite, or negative")
    return totals


def _float32(site: str, sent: NDArray[Any]) -> Float32:
    with blame(site):
        return sent if sent.dtype == np.float32 else from_bfloat16(sent, np.empty(sent.shape, np.float32))


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _steps(run: Run, update: UpdateManifest) -> int:
    """The site's own number of local steps. The number that FedNova divides by may be larger."""
    committed = run.update(update.round, update.site, update.attempt)
    return committed.steps if committed else update.steps


def _parameter(name: str) -> str:
    return name.partition(".")[2]


def _check(site: str, update: UpdateManifest, shapes: Shapes) -> None:
    """Refuse moments that are not the optimizer's, before any of their bytes are read."""
    with blame(site):
        sent = all_tensors(update.moments)
    for name in sorted(sent.keys() | shapes.keys()):
        tensor = sent.get(name)
        if tensor is None or tensor.shape != shapes.get(name) or tensor.dtype not in SENT_AS.values():
            what = (
                "is missing" if tensor is None else "is not one of the optimizer's, or has another shape or dtype"
            )
            raise UpdateRejected(site, f"the optimizer's moment '{name[:200]}' {what}")
    with blame(site):
        check_files(update.moments, 2 * len(shapes))
