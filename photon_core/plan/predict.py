"""The prediction of a round, and of the whole run: memory, seconds and bytes, site by site.

Seconds of a site in a round = start + download + H steps + upload. A step takes its tokens over the measured
speed. Without a measurement it takes flops_per_token times its tokens over the declared speed (devices x tflops x
utilisation). The sites' part of a round ends with the straggler. If rounds were measured, that part takes at least
the sum of the sites' seconds over the number of sites that were at work at a time (photon_core/plan/measured.py).
Aggregation follows, at a rate of bytes that it reads: every update once, or more with regions
(photon_core/plan/costs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from photon_core.hardware.exchange import TOPOLOGIES, Topology, bytes_sent, communication_seconds, total_seconds
from photon_core.hardware.parallelism import FREE, choose_infra, job_infra
from photon_core.model.cost import Memory, flops_per_token, training_memory
from photon_core.model.shapes import parameter_count
from photon_core.plan.costs import (
    aggregation_bytes,
    model_bytes,
    region_count,
    slowest_link,
    transfer_seconds,
    update_bytes,
)
from photon_core.plan.measured import Measured, measure
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import SiteView, active_views

START_SECONDS = 2.0  # for a child process with its data and its Trainer, until rounds have measured it
AGGREGATION_RATE = 0.5e9  # bytes that aggregation reads in a second, until rounds have measured it
FORWARD = 1 / 3  # share of the forward pass in training's operations


@dataclass(frozen=True)
class SitePlan:
    """One site in one round. None means unknown: the site declares nothing, and nothing was measured.

    Args:
        name: name of the site.
        micro_batch: sequences per forward pass, for gradient accumulation; 0 if not even one fits.
        memory: memory of one device at that micro-batch.
        fits: flag: the memory suffices; None if the site does not declare its memory.
        shards: number of devices that FSDP shards the model over; 1 without FSDP.
        infra: parallelism of the site's devices, with the reason; empty for a site with one device.
        step, train: seconds of one local step, and of all steps of a round.
        start, download, upload: seconds of these phases.
    """

    name: str
    micro_batch: int
    memory: Memory
    fits: bool | None
    shards: int
    infra: str
    step: float | None
    train: float | None
    start: float
    download: float | None
    upload: float | None

    @property
    def seconds(self) -> float | None:
        if self.train is None:
            return None
        return self.start + (self.download or 0.0) + self.train + (self.upload or 0.0)


@dataclass(frozen=True)
class Prediction:
    """One round and the whole run.

    Args:
        sites: plans of the sites that are not paused.
        sampled: number of sites a round.
        steps, rounds: local steps a round, and number of rounds.
        parameters: number of the model's parameters.
        download_bytes, upload_bytes: bytes of one site in one round.
        sites_seconds: seconds until every site of a round has uploaded; None if a site's speed is unknown.
        aggregate, evaluate: seconds of these phases.
        bandwidth: bytes a second of the slowest link; None if a site declares no link.
        calibrated: number of rounds behind the calibration; 0 without one.
        regions: number of regions of the aggregation; 0 for one pass over all sites.
    """

    sites: list[SitePlan]
    sampled: int
    steps: int
    rounds: float
    parameters: int
    download_bytes: int
    upload_bytes: int
    sites_seconds: float | None
    aggregate: float
    evaluate: float
    bandwidth: float | None
    calibrated: int
    regions: int = 0

    @property
    def round_seconds(self) -> float | None:
        return None if self.sites_seconds is None else self.sites_seconds + self.aggregate + self.evaluate

    @property
    def run_seconds(self) -> float | None:
        return None if self.round_seconds is None else self.rounds * self.round_seconds

    @property
    def run_bytes(self) -> float:
        """Downloads and uploads of all sites in all rounds."""
        return self.rounds * self.sampled * (self.download_bytes + self.upload_bytes)

    @property
    def local_seconds(self) -> float | None:
        """Seconds of the straggler's training in a round."""
        trained = [site.train for site in self.sites]
        return None if None in trained else max(seconds for seconds in trained if seconds is not None)

    def topology_seconds(self, topology: Topology, data_parallel: bool = False) -> float | None:
        """Seconds of the whole run with another exchange between the sites, by Photon's wall-time model.

        Args:
            topology: topology of the exchange.
            data_parallel: flag: exchange float32 gradients at every step, instead of models once a round.
        """
        if self.local_seconds is None or self.bandwidth is None:
            return None
        size = 4.0 * self.parameters
        exchange = communication_seconds(topology, self.sampled, size, self.bandwidth)
        if data_parallel:
            return total_seconds(self.rounds * self.steps, self.local_seconds / self.steps, exchange)
        return total_seconds(self.rounds, self.local_seconds, exchange, self.aggregate)

    def topology_bytes(self, topology: Topology, data_parallel: bool = False) -> float:
        exchanges = self.rounds * (self.steps if data_parallel else 1)
        return exchanges * bytes_sent(topology, self.sampled, 4.0 * self.parameters)

    @property
    def data_parallel_seconds(self) -> float | None:
        """Seconds of data-parallel training over the same links, with the fastest of the three topologies."""
        times = [self.topology_seconds(topology, data_parallel=True) for topology in TOPOLOGIES]
        return min((seconds for seconds in times if seconds is not None), default=None)


def predict(federation: Federation, measured: Measured | None = None, steps: int | None = None) -> Prediction:
    """The plan of a federation file.

    Args:
        federation: federation file.
        measured: calibration by past rounds; None to use only the declared hardware.
        steps: local steps a round instead of the file's; the number of rounds changes, the total of steps does
            not.
    """
    local = federation.local
    steps_a_round = local.steps if steps is None else steps
    upload = update_bytes(federation)
    sites = site_plans(federation, measured, steps_a_round)
    sampled = federation.sites_per_round
    regions = region_count(federation, sampled)
    read = aggregation_bytes(federation, sampled, upload, regions)
    return Prediction(
        sites=sites,
        sampled=sampled,
        steps=steps_a_round,
        rounds=federation.total_rounds * local.steps / steps_a_round,
        parameters=parameter_count(federation.model),
        download_bytes=model_bytes(federation),
        upload_bytes=upload,
        sites_seconds=together([site.seconds for site in sites], sampled, measured),
        aggregate=read * (measured.aggregate if measured else 1 / AGGREGATION_RATE),
        evaluate=measured.evaluate if measured else evaluation_seconds(federation, sites),
        bandwidth=slowest_link(federation),
        calibrated=measured.rounds if measured else 0,
        regions=regions,
    )


def site_plans(federation: Federation, measured: Measured | None, steps: int) -> list[SitePlan]:
    """Plans of the sites that are not paused, for a round of this number of local steps."""
    upload = update_bytes(federation)
    return [_site(view, measured, steps, upload) for view in active_views(federation)]


def _site(view: SiteView, measured: Measured | None, steps: int, upload: int) -> SitePlan:
    micro_batch, shards, memory = fitting(view)
    limit = _limit(view)
    own_steps = steps * view.steps / view.local.steps
    most = view.time_limit or inf
    step = step_seconds(view, measured)
    down, up = transfer_seconds(view.federation, view.section, upload)
    return SitePlan(
        name=view.name,
        micro_batch=micro_batch,
        memory=memory,
        fits=None if limit is None else memory.total <= limit,
        shards=shards,
        infra=_infra(view),
        step=step,
        train=None if step is None else min(own_steps * step, most),
        start=measured.overhead.get(view.name, START_SECONDS) if measured else START_SECONDS,
        download=down,
        upload=up,
    )


def step_seconds(view: SiteView, measured: Measured | None) -> float | None:
    """Seconds of one local step at a site: measured, else declared, else unknown (None)."""
    tokens = view.local.batch_size * view.federation.model.max_seq_len
    if measured is not None and view.name in measured.tokens_per_second:
        return tokens * choose_infra(view).nodes / measured.tokens_per_second[view.name]
    hardware = view.hardware
    if hardware is None:
        return None
    devices = choose_infra(view).ranks  # each node that trains independently makes the whole step
    rate = devices * hardware.tflops * 1e12 * hardware.utilisation
    return tokens * flops_per_token(view.federation.model) / rate


def fitting(view: SiteView) -> tuple[int, int, Memory]:
    """The micro-batch of a site: the file's number, or the whole batch. With auto, it is halved until it fits.

    Returns:
        sequences per forward pass on one device, shards, and the memory of one device; 0 sequences if not even one
        fits.
    """
    local = view.local
    infra = job_infra(view)
    shards = infra.ranks if infra.kind == "fsdp" else 1
    limit, given = _limit(view), view.micro_batch
    size = -(-local.batch_size // infra.ranks)
    if isinstance(given, int):
        size = min(size, given)

    def memory(micro_batch: int) -> Memory:
        name, ddp, proximal = local.optimizer.name, infra.kind == "ddp", local.proximal is not None
        return training_memory(view.federation.model, micro_batch, local.precision, name, shards, ddp, proximal)

    if limit is not None and memory(1).total > limit:
        return 0, shards, memory(1)
    while limit is not None and given == "auto" and memory(size).total > limit:
        size //= 2
    return size, shards, memory(size)


def _infra(view: SiteView) -> str:
    hardware = view.hardware
    return "" if hardware is None or hardware.all_devices == 1 else str(choose_infra(view))


def _limit(view: SiteView) -> float | None:
    gigabytes = view.memory_gb
    return None if gigabytes is None else gigabytes * 1e9 * FREE


def together(members: Sequence[float | None], sampled: int, measured: Measured | None) -> float | None:
    """Seconds until the straggler of the sampled members has finished; any member may be sampled.

    Args:
        members: seconds of each; None if unknown.
        sampled: number of members a round.
        measured: calibration by past rounds.
    """
    seconds = [one for one in members if one is not None and isfinite(one)]
    if not seconds or len(seconds) < len(members):
        return None
    straggler = max(seconds)
    if measured is None:
        return straggler
    total = sum(seconds) * sampled / len(seconds)
    return max(straggler, total / measured.concurrency)


def evaluation_seconds(federation: Federation, sites: Sequence[SitePlan]) -> float:
    """Seconds of the straggler's download of the candidate, and of its forward passes over held-out sequences."""
    share = FORWARD * federation.data.evaluation_sequences / federation.local.batch_size
    times = [START_SECONDS + (s.download or 0.0) + share * s.step for s in sites if s.step is not None]
    return max(times, default=0.0)


def compared(federation: Federation, rounds: Sequence[RoundManifest]) -> list[tuple[int, float | None, float]]:
    """(round, seconds predicted from the previous rounds, seconds measured) for every measured round.

    The prediction for the first round uses only what the sites declare; it is None if they declare nothing.
    """
    rows = []
    for index, manifest in enumerate(rounds):
        if manifest.updates and manifest.seconds:
            expected = predict(federation, measure(federation, rounds[:index])).round_seconds
            rows.append((manifest.round, expected, sum(manifest.seconds.values())))
    return rows
