"""HasInfra (Photon, Algorithm 1): how a site's devices train together. Pure functions of the federation file.

With fast links between the nodes, the site trains as one job: DDP, or FSDP where parameters, gradients, optimizer
state and activations do not fit one device by the estimate of model/cost.py. With slow links the nodes train
independently, each on a part of the site's stream, and are averaged at the site.
"""

from dataclasses import dataclass
from typing import Literal

from photon_core.errors import FederationError
from photon_core.hardware.exchange import communication_seconds
from photon_core.model.cost import FLOAT, flops_per_token, training_memory
from photon_core.model.shapes import parameter_count
from schemas.presets import OURS
from schemas.sections.hardware import Hardware
from schemas.view import SiteView

FREE = 0.9  # usable share of a device's memory; the rest is for the allocator and the libraries
HIDDEN = 2 / 3  # share of a step that is its backward pass, with which DDP overlaps its exchange of gradients
# Nodes train independently if their devices would otherwise wait for each other for a larger share of a step. A
# smaller share costs less than averaging once a round instead of at every step costs in perplexity a token.
MOST_WAITING = 0.5
TRAINS_ON = {"none": "one device", "ddp": "DDP", "fsdp": "FSDP", "federation": "a federation inside the site"}

Kind = Literal["none", "ddp", "fsdp", "federation"]


@dataclass(frozen=True)
class Infra:
    """How a site's devices train together.

    Args:
        kind: kind of parallelism: none (one device), ddp, fsdp, or federation (nodes train independently).
        ranks: number of devices of one job: of the site, or of each node of a federation.
        nodes: number of nodes that train independently; 1 unless it is a federation.
        reason: reason for the choice, for people.
    """

    kind: Kind
    ranks: int
    nodes: int
    reason: str

    def __str__(self) -> str:
        many = f" of {self.nodes} nodes" if self.nodes > 1 else f" over {self.ranks} devices"
        return TRAINS_ON[self.kind] + ("" if self.kind == "none" else many) + f": {self.reason}"


def choose_infra(view: SiteView) -> Infra:
    """How this site's devices train together, and why. A value of hardware.parallel other than auto decides."""
    hardware = view.hardware
    if hardware is None:
        return Infra("none", 1, 1, "the site declares no hardware")
    if hardware.parallel == "federation":
        return Infra("federation", hardware.devices, hardware.nodes, "hardware.parallel is federation")
    if hardware.parallel != "auto":
        ranks = 1 if hardware.parallel == "none" else hardware.all_devices
        return Infra(hardware.parallel, ranks, 1, f"hardware.parallel is {hardware.parallel}")
    if hardware.all_devices == 1:
        return Infra("none", 1, 1, "the site has one device")
    if hardware.nodes > 1:
        waiting = waiting_share(view, hardware)
        if waiting > MOST_WAITING:
            speed = f"{hardware.interconnect:g} Gbit/s"
            reason = f"at {speed} the nodes would wait {waiting:.0%} of the time for each other"
            return Infra("federation", hardware.devices, hardware.nodes, reason)
    kind, reason = _one_job(view, hardware)
    return Infra(kind, hardware.all_devices, 1, reason)


def check_infra(view: SiteView) -> Infra:
    """`choose_infra`, for a site whose settings permit it.

    Raises:
        FederationError: the settings do not permit it; the message says what to write instead.
    """
    infra, local = choose_infra(view), view.local
    job = job_infra(view)
    where = f"sites[{view.name}].hardware: trains with {TRAINS_ON[job.kind]} ({job.reason})"
    if infra.ranks > local.batch_size:
        raise FederationError(
            f"{where} on {infra.ranks} devices, but local.batch_size is {local.batch_size} sequences; write a "
            "batch of at least one sequence a device, fewer devices, or parallel: none"
        )
    if job.kind != "fsdp":
        return infra
    if local.device == "cpu":
        raise FederationError(
            f"{where}, which needs GPUs, but local.device is cpu; write parallel: ddp, or local.device: cuda"
        )
    if local.optimizer.name == "muon":
        ours = view.federation.recipe == OURS
        of = f" (of recipe: {OURS}, the default)" if ours else ""
        instead = "recipe: diloco, or recipe: null with local.steps" if ours else "local.optimizer.name: adamw"
        raise FederationError(
            f"{where}, but Muon{of} needs whole matrices and FSDP cuts them; write {instead}, or parallel: ddp on "
            "devices that hold the model"
        )
    if local.proximal is not None:
        raise FederationError(
            f"{where}, which does not support local.proximal; drop it, or write parallel: ddp on devices that "
            "hold the model"
        )
    if local.compile:
        raise FederationError(
            f"{where}, which cannot be compiled; drop local.compile (other sites' GPUs still compile)"
        )
    return infra


def check_gpus(site: str, needed: int, available: int) -> None:
    """Refuse to train on more GPUs than a machine has.

    Raises:
        FederationError: the machine has fewer.
    """
    if available < needed:
        raise FederationError(
            f"sites[{site}].hardware: training takes {needed} GPUs of one machine, and this one shows "
            f"{available}. A job over several machines is not supported: write each machine as its own site, or "
            "the number of devices that this machine has"
        )


def check_processors(view: SiteView) -> None:
    """Refuse to train with FSDP on a machine without usable GPU.

    Raises:
        FederationError: the site trains with FSDP.
    """
    job = job_infra(view)
    if job.kind == "fsdp":
        raise FederationError(
            f"sites[{view.name}].hardware: trains with FSDP ({job.reason}), which needs GPUs, but this machine "
            "has no usable GPU; look at nvidia-smi, or write parallel: ddp to train on the processors"
        )


def waiting_share(view: SiteView, hardware: Hardware) -> float:
    """Share of a step for which the devices of one job over all nodes wait for the exchange of gradients.

    The exchange is a ring all-reduce of float32 gradients between the nodes, less its overlap with the backward
    pass.
    """
    if hardware.interconnect is None:
        return 0.0
    tokens = view.local.batch_size * view.federation.model.max_seq_len
    rate = hardware.all_devices * hardware.tflops * 1e12 * hardware.utilisation
    compute = tokens * flops_per_token(view.federation.model) / rate
    size = float(FLOAT * parameter_count(view.federation.model))
    bandwidth = hardware.interconnect * 1e9 / 8
    exchange = communication_seconds("ring all-reduce", hardware.nodes, size, bandwidth)
    waiting = max(0.0, exchange - HIDDEN * compute)
    return waiting / (compute + waiting)


def _one_job(view: SiteView, hardware: Hardware) -> tuple[Kind, str]:
    if view.local.device == "cpu":
        return "ddp", "processors share the machine's memory, and FSDP needs GPUs"
    if hardware.memory_gb is None:
        return "ddp", "hardware.memory_gb is not given, so the model is assumed to fit one device"
    needed, room = _needed(view, hardware), FREE * hardware.memory_gb
    memory = f"a device's {hardware.memory_gb:g} GB, of which {room:.1f} are used"
    return ("ddp" if needed <= room else "fsdp"), f"training takes {needed:.1f} GB of {memory}"


def _needed(view: SiteView, hardware: Hardware) -> float:
    """10^9 bytes of one device with the whole model and the file's micro-batch (one sequence if it is auto)."""
    local = view.local
    given = view.micro_batch
    share = -(-local.batch_size // hardware.all_devices)  # the largest one, if the batch is not divided evenly
    size = 1 if given == "auto" else min(given or share, share)
    name, proximal = local.optimizer.name, local.proximal is not None
    model = view.federation.model
    return training_memory(model, size, local.precision, name, ddp=True, proximal=proximal).total / 1e9


def job_infra(view: SiteView) -> Infra:
    """How each job of the site trains: its only job, or a node's job of a federation inside the site."""
    infra = choose_infra(view)
    return choose_infra(view.node(1)) if infra.kind == "federation" else infra
