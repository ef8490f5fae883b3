"""The federation file's section `model`: the decoder-only transformer that is trained."""

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.presets import MODEL_PRESETS
from schemas.sections.base import Section
from schemas.sections.values import wrong


class Model(Section):
    """The decoder-only transformer: learned positions, tied embeddings, GELU, biases (as MPT)."""

    preset: Literal["75M", "125M", "350M", "1.3B", "3B", "7B"] | None = Field(
        default=None, description="published shape; other keys of this section override it"
    )
    n_layers: int = Field(ge=1, description="transformer blocks", examples=[12])
    d_model: int = Field(ge=1, description="width", examples=[768])
    n_heads: int = Field(ge=1, description="attention heads; must divide d_model", examples=[12])
    expansion_ratio: int = Field(default=4, ge=1, description="MLP width / d_model")
    vocab_size: int = Field(
        default=50_368, ge=2, description="rows of the embedding; at least the tokenizer's size"
    )
    max_seq_len: int = Field(default=2048, ge=2, description="tokens per sequence")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        name = data.get("preset") if isinstance(data, dict) else None
        return {**MODEL_PRESETS[name], **data} if isinstance(name, str) and name in MODEL_PRESETS else data

    @model_validator(mode="after")
    def _heads(self) -> "Model":
        if self.d_model % self.n_heads:
            width = self.n_heads * max(1, round(self.d_model / self.n_heads))
            raise wrong(
                f"{self.d_model} is not a multiple of n_heads {self.n_heads}; write {width} or change it",
                "d_model",
            )
        return self
