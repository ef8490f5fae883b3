"""The federation file's section `aggregation`: how the server reads and combines the sites' updates."""

from pydantic import Field, model_validator

from schemas.sections.base import Section
from schemas.sections.values import wrong

MIB = 1 << 20


class Aggregation(Section):
    """Resources of the server's pass over the updates. None of them changes the meaning of the result."""

    tree_above: int | None = Field(
        default=None,
        ge=1,
        description="with more sampled sites than this, regions are averaged first, then their means; default: "
        "never",
        examples=[32],
    )
    fan_out: int = Field(default=16, ge=2, description="largest number of sites in a region", examples=[16])
    shard_mib: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="largest file of a model or an update (MiB); a larger tensor is split by rows",
        examples=[256],
    )
    memory_mib: int = Field(
        default=256, ge=16, description="memory for prefetched data (MiB), shared by all sites' updates"
    )
    connections: int = Field(
        default=16,
        ge=1,
        le=256,
        description="concurrent requests to a store that is not a local disk",
    )

    @model_validator(mode="after")
    def _tree(self) -> "Aggregation":
        if self.tree_above is None and self.fan_out != type(self).model_fields["fan_out"].default:
            raise wrong("is for regions, which need tree_above; write that, or drop it", "fan_out")
        return self

    @property
    def shard_bytes(self) -> int:
        return self.shard_mib * MIB

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB
