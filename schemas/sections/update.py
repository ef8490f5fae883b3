"""The federation file's section `update`: processing of an update before it is sent (PostProcess), and types."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from schemas.sections.base import Section
from schemas.sections.values import only_for, wrong

LEAST_BLOCK, LARGEST_BLOCK = 16, 4096
BLOCKED = ("int8", "int4", "int3", "topk")


class Update(Section):
    """PostProcess of Algorithm 1: clip, add noise, compress, in this order; each is optional."""

    clip_norm: float | None = Field(
        default=None, gt=0, description="largest Euclidean norm of an update; a larger update is scaled down to it"
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the Gaussian noise that a site adds to every parameter, divided by "
        "clip_norm",
        examples=[0.5],
    )
    codec: Literal["float32", "bfloat16", "float16", "int8", "int4", "int3", "topk"] = Field(
        default="float32", description="encoding of the change; float32 is lossless"
    )
    block: int = Field(
        default=256,
        ge=LEAST_BLOCK,
        le=LARGEST_BLOCK,
        description="number of parameters that share a scale, for int8, int4, int3 and topk; a power of two",
    )
    top_k: float = Field(
        default=0.0625,
        gt=0,
        le=1,
        description="share of a block's parameters that topk sends: the largest changes",
    )
    error_feedback: bool = Field(
        default=True, description="keep a lossy codec's residual at the site and add it to the site's next update"
    )
    model_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the global model that sites download; the store keeps float32"
    )
    moments_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="type of the optimizer's moments that are sent to and from the sites, with "
        "local.optimizer_state: average",
    )

    @field_validator("block")
    @classmethod
    def _power_of_two(cls, block: int) -> int:
        if block & (block - 1):
            raise ValueError(
                f"is not a power of two; write one from {LEAST_BLOCK} to {LARGEST_BLOCK}, such as 256"
            )
        return block

    @model_validator(mode="after")
    def _noise(self) -> "Update":
        if self.noise_multiplier and self.clip_norm is None:
            raise wrong(
                f"noise of {self.noise_multiplier:g} times clip_norm needs a clip_norm; write one, such as 1.0",
                "noise_multiplier",
            )
        return self

    @model_validator(mode="after")
    def _codec(self) -> "Update":
        only_for(self, "block", self.codec, BLOCKED, "the codecs ")
        only_for(self, "top_k", self.codec, ["topk"], "the codecs ")
        return self

    @property
    def codec_name(self) -> str:
        """The codec with its numbers, as in update manifests: int8:256, topk:256:16."""
        if self.codec == "topk":
            return f"topk:{self.block}:{max(1, round(self.top_k * self.block))}"
        return f"{self.codec}:{self.block}" if self.codec in BLOCKED else self.codec
