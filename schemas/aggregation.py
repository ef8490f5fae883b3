"""The federation file's `aggregation`: how the server reads and combines the sites' updates."""

from pydantic import Field

from schemas.section import Section


class Aggregation(Section):
    """Numbers of the server's pass over the updates; none of them changes what the result means."""

    tree_above: int | None = Field(
        default=None,
        ge=1,
        description="with more sampled sites, regions are averaged first, then their means; never if left out",
        examples=[32],
    )
    fan_out: int = Field(default=16, ge=2, description="most sites of a region", examples=[16])
