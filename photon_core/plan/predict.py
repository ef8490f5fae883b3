"""A round, and the whole run, before they are run: memory, seconds and bytes, site by site.

Seconds of a site in a round = start + download + H steps + upload. A step takes flops_per_token times its tokens
over what the site declares (devices x tflops x utilisation), or its tokens over the speed that was measured. The
sites' part of a round ends with its slowest site; where rounds were measured, it is at least the sum of the sites'
seconds over the number of them that were at work at a time (photon_core/plan/measured.py). Aggregation follows, at
a rate of bytes that it reads: every update once, or more by regions (photon_core/plan/costs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from photon_core.hardware.exchange import TOPOLOGIES, Topology, bytes_sent, communication_seconds, total_seconds
from photon_core.hardware.parallelism import FREE, choose_infra, job_infra
from photon_core.model.cost import Memory, flops_per_token, training_memory
from photon_core.model.shapes import parameter_count
from photon_core.plan.costs import (
    bytes_read,
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

START_SECONDS = 2.0  # a child process with its data and its Trainer, until rounds say how long
AGGREGATION_RATE = 0.5e9  # bytes that aggregation reads in a second, until rounds say how many
FORWARD = 1 / 3  # of training's operations


@dataclass(frozen=True)
class SitePlan:
    """One site in one round. None: not known, because the site declares nothing and nothing was measured.

    Args:
        micro_batch: sequences at once, for gradients to be accumulated over; 0 if not one fits.
        memory: of one device at that micro-batch.
        fits: whether it does; None where the site does not declare its memory.
        shards: devices that FSDP spreads the model over; 1 for none.
        infra: how the site's devices train together, and why; empty for a site with one device.
        step, train: seconds of one local step, and of all of a round.
        start, download, upload: seconds.
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
        sites: every site of the file that is not paused.
        sampled: sites a round.
        steps, rounds: local steps a round, rounds in all.
        download_bytes, upload_bytes: of one site in one round.
        sites_seconds: until every site of a round has uploaded; None if a site's speed is not known.
        aggregate, evaluate: seconds.
        bandwidth: bytes a second of the slowest link, None if a site declares none.
        calibrated: rounds that it is calibrated on, 0 for none.
        regions: that a round is aggregated by, 0 for one pass over all sites.
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
        """Down and up, of all sites in all rounds."""
        return self.rounds * self.sampled * (self.download_bytes + self.upload_bytes)

    @property
    def local_seconds(self) -> float | None:
        """The slowest site's training in a round."""
        trained = [site.train for site in self.sites]
        return None if None in trained else max(seconds for seconds in trained if seconds is not None)

    def topology_seconds(self, topology: Topology, data_parallel: bool = False) -> float | None:
        """Seconds of the whole run if the sites exchanged so, by Photon's wall-time model.

        Args:
            topology: how.
            data_parallel: with an exchange of float32 gradients at every step instead of models once a round.
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
        """The least of the three, for data-parallel training over the same links."""
        found = [self.topology_seconds(topology, data_parallel=True) for topology in TOPOLOGIES]
        return min((seconds for seconds in found if seconds is not None), default=None)


def predict(federation: Federation, measured: Measured | None = None, steps: int | None = None) -> Prediction:
    """The plan of a federation file.

    Args:
        federation: the file.
        measured: what its rounds so far took; None for declared hardware alone.
        steps: local steps a round instead of the file's; the number of rounds follows, all steps stay the same.
    """
    local = federation.local
    steps_a_round = local.steps if steps is None else steps
    upload = update_bytes(federation)
    sites = [_site(view, measured, steps_a_round, upload) for view in active_views(federation)]
    sampled = federation.sites_per_round
    regions = region_count(federation, sampled)
    read = bytes_read(sampled, upload, 4.0 * parameter_count(federation.model), regions)
    return Prediction(
        sites=sites,
        sampled=sampled,
        steps=steps_a_round,
        rounds=federation.total_rounds * local.steps / steps_a_round,
        parameters=parameter_count(federation.model),
        download_bytes=model_bytes(federation),
        upload_bytes=upload,
        sites_seconds=_together(sites, sampled, measured),
        aggregate=read * (measured.aggregate if measured else 1 / AGGREGATION_RATE),
        evaluate=measured.evaluate if measured else _evaluate(federation, sites),
        bandwidth=slowest_link(federation),
        calibrated=measured.rounds if measured else 0,
        regions=regions,
    )


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
    devices = choose_infra(view).ranks  # nodes that train apart each make the whole step
    rate = devices * hardware.tflops * 1e12 * hardware.utilisation
    return tokens * flops_per_token(view.federation.model) / rate


def fitting(view: SiteView) -> tuple[int, int, Memory]:
    """The micro-batch that a site trains with: the file's, or the whole batch; auto: what halving makes fit.

    Returns:
        sequences at once on one device, shards, and the memory of one device; no sequences where not one fits.
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


def _together(sites: list[SitePlan], sampled: int, measured: Measured | None) -> float | None:
    """Seconds until the slowest of the sampled sites is done; any site may be sampled."""
    seconds = [site.seconds for site in sites if site.seconds is not None and isfinite(site.seconds)]
    if len(seconds) < len(sites):
        return None
    slowest = max(seconds)
    if measured is None:
        return slowest
    total = sum(seconds) * sampled / len(seconds)
    return max(slowest, total / measured.concurrency)


def _evaluate(federation: Federation, sites: list[SitePlan]) -> float:
    """The slowest site's download of the candidate and forward passes over its held-out sequences."""
    share = FORWARD * federation.data.evaluation_sequences / federation.local.batch_size
    found = [START_SECONDS + (s.download or 0.0) + share * s.step for s in sites if s.step is not None]
    return max(found, default=0.0)


def compared(federation: Federation, rounds: Sequence[RoundManifest]) -> list[tuple[int, float | None, float]]:
    """(round, seconds that the rounds before it let expect, seconds that it took) for every measured round.

    The first has nothing before it but what the sites declare; None where they do not.
    """
    found = []
    for index, manifest in enumerate(rounds):
        if manifest.updates and manifest.seconds:
            expected = predict(federation, measure(federation, rounds[:index])).round_seconds
            found.append((manifest.round, expected, sum(manifest.seconds.values())))
    return found
