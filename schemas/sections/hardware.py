"""The federation file's sections `hardware` and `link` of a site. `photon plan` predicts from them, and the site
derives its parallelism."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.sections.base import Section
from schemas.sections.values import wrong


class Hardware(Section):
    """The machines that train at a site."""

    nodes: int = Field(
        default=1,
        ge=1,
        description="groups of equal devices in one machine; separate machines are written as separate sites",
    )
    devices: int = Field(default=1, ge=1, description="accelerators (or processors) per node")
    interconnect: float | None = Field(
        default=None,
        gt=0,
        description="Gbit/s between two nodes; with a slow link the nodes train independently, a federation "
        "inside the site",
        examples=[100],
    )
    parallel: Literal["auto", "none", "ddp", "fsdp", "federation"] = Field(
        default="auto",
        description="parallelism: one device, DDP, FSDP (the model spread over the devices), or nodes that train "
        "independently and are averaged at the site; auto: chosen by memory_gb and interconnect",
    )
    tflops: float = Field(
        gt=0, description="peak of one device at local.precision, in 10^12 FLOP/s", examples=[989]
    )
    utilisation: float = Field(
        default=0.4, gt=0, le=1, description="share of the peak that training reaches (MFU)", examples=[0.4]
    )
    memory_gb: float | None = Field(
        default=None, gt=0, description="memory of one device, in 10^9 bytes", examples=[80]
    )

    @property
    def all_devices(self) -> int:
        """Number of devices of all nodes."""
        return self.nodes * self.devices

    @model_validator(mode="after")
    def _nodes(self) -> "Hardware":
        if self.nodes == 1:
            if self.interconnect is not None:
                raise wrong(
                    "is the link between nodes, but the site has one node; write nodes, or drop it", "interconnect"
                )
            if self.parallel == "federation":
                raise wrong(
                    "federation is for several nodes, but the site has one; write nodes, or auto", "parallel"
                )
        elif self.parallel == "auto" and self.interconnect is None:
            raise wrong(
                f"missing, but the site has {self.nodes} nodes; write the Gbit/s between two of them, such as "
                "100, or choose with parallel",
                "interconnect",
            )
        if self.parallel in ("ddp", "fsdp") and self.all_devices == 1:
            raise wrong(f"{self.parallel} is for several devices, but the site has one; write devices", "parallel")
        return self


class Link(Section):
    """The site's link to the store."""

    up: float = Field(gt=0, description="Gbit/s from the site to the store", examples=[1])
    down: float | None = Field(
        default=None, gt=0, description="Gbit/s from the store to the site; default: up", examples=[1]
    )
