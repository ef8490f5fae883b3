"""The federation file's `hardware` and `link` of a site: what it declares, so that `photon plan` can predict."""

from pydantic import Field

from schemas.section import Section


class Hardware(Section):
    """What trains at a site."""

    devices: int = Field(default=1, ge=1, description="accelerators (or processors) that train together")
    tflops: float = Field(
        gt=0, description="peak of one device at local.precision, in 10^12 FLOP/s", examples=[989]
    )
    utilisation: float = Field(
        default=0.4, gt=0, le=1, description="share of the peak that training reaches (MFU)", examples=[0.4]
    )
    memory_gb: float | None = Field(
        default=None, gt=0, description="memory of one device, in 10^9 bytes", examples=[80]
    )


class Link(Section):
    """The site's link to the store."""

    up: float = Field(gt=0, description="Gbit/s from the site to the store", examples=[1])
    down: float | None = Field(
        default=None, gt=0, description="Gbit/s from the store to the site; as up if left out", examples=[1]
    )
