"""The federation file's `worldlm`: the key layers that each node of a tree keeps, and how they are averaged.

WorldLM: Iacob et al., "Worldwide Federated Training of Language Models" (arXiv 2405.14446). Published: about 30 %
of the blocks are key layers, the backbone's mean is unweighted. All other defaults are choices of this project.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from schemas.sections.aggregation import Aggregation
from schemas.sections.base import Section
from schemas.sections.server import Server
from schemas.sections.update import Update
from schemas.sections.values import wrong

WITHOUT = "worldlm.key_layers: 0"
AUTO = "auto"


def _key_layers(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 < value < 1
    names = isinstance(value, list) and value and all(isinstance(one, str) and one.strip() for one in value)
    if not (number or share or names):
        raise ValueError(
            "is neither a share, a number nor a list of names; write a share of the blocks between 0 and 1 such "
            "as 0.3, a number of blocks such as 4, or names of parameters such as [blocks.11]"
        )
    return value


KeyLayers = Annotated[
    int | float | list[str],
    BeforeValidator(_key_layers),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"\S"}},
            ]
        }
    ),
]


def _temperature(value: Any) -> Any:
    if value == AUTO:
        return value
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("is not a temperature; write auto, or a number of at least 0 such as 1")
    return float(value)


Temperature = Annotated[
    float | Literal["auto"],
    BeforeValidator(_temperature),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": AUTO}]}),
]


class WorldLM(Section):
    """Attention averages a node's key layers with its parent's and members'; a plain mean, the backbone."""

    key_layers: KeyLayers = Field(
        default=0.3,
        description="last blocks of the model that are key layers: their share (rounded, at least one block), as "
        "published; or their number, 0 for none; or names of blocks and parameters",
        examples=[0.3, 4],
    )
    attention: Literal["cosine", "dot", "mean"] = Field(
        default="cosine",
        description="similarity of two nodes' key layers; dot and mean are for comparison (a choice)",
    )
    temperature: Temperature = Field(
        default=1.0,
        description="softness of attention. With cosine, its unit is 1 minus the mean cosine of the others: at 1 "
        "the own row has e times the weight of an average other row. 0 keeps the own row. A large value "
        "approaches the mean. auto: of the own row, 0.3, 1, 3, the mean and its parent's row, each node takes "
        "what gives the lowest loss on held-out text (a choice)",
    )
    own_row: bool = Field(
        default=True, description="flag: a node's own key layers, which are the query, also take part in the mean"
    )
    residuals: Literal["off", "region", "tree"] = Field(
        default="tree",
        description="use of the member's key layers that the mean represents least: off: none; region: they go to "
        "another member that they fit; tree: they go up to the parent, for another branch (a choice)",
    )
    rounds: int = Field(
        default=1, ge=1, description="rounds that this federation trains in each round of its parent (a choice)"
    )
    weights: Literal["uniform", "tokens"] = Field(
        default="uniform",
        description="weights of the members in both means: uniform, as published, or by trained tokens",
    )

    @model_validator(mode="after")
    def _temperature(self) -> "WorldLM":
        if self.temperature == 0 and self.attention == "dot":
            raise wrong("0 would keep the longest row with dot; write a number above 0", "temperature")
        if self.temperature == 0 and not self.own_row:
            raise wrong("0 keeps the own row, which own_row: false excludes; drop one of them", "temperature")
        if self.temperature == AUTO and self.attention != "cosine":
            why = f"auto compares temperatures and the mean with cosine, but attention is {self.attention}"
            raise wrong(f"{why}; write attention: cosine, or a number", "temperature")
        if self.temperature == AUTO and not self.own_row:
            raise wrong("auto also tries the own row, which own_row: false excludes; drop one", "temperature")
        return self


def refuse_beside(worldlm: WorldLM, server: Server, update: Update, aggregation: Aggregation) -> None:
    """Refuse values of other sections that contradict `worldlm`.

    Raises:
        PydanticCustomError: at the key.
    """
    if server.weights != worldlm.weights:
        raise wrong(
            f"{server.weights}, but worldlm.weights ({worldlm.weights}) holds for both means; drop it, and write "
            "the weights there",
            *("server", "weights"),
        )
    if worldlm.key_layers == 0:
        return
    if server.mean != "mean":
        raise wrong(
            f"{server.mean} is for whole models, and key layers are averaged by attention; write mean, or "
            f"{WITHOUT}",
            *("server", "mean"),
        )
    if update.model_dtype != "float32":
        raise wrong(
            f"{update.model_dtype} would round the key layers that each node keeps; write float32, or {WITHOUT}",
            *("update", "model_dtype"),
        )
    if aggregation.tree_above is not None:
        raise wrong(
            f"attention needs every member's key layers, not means of regions; drop it, or write {WITHOUT}",
            *("aggregation", "tree_above"),
        )
