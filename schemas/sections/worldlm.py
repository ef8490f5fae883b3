"""The federation file's `worldlm`: key layers, which each node keeps, and how a node of the tree treats them.

WorldLM: Iacob et al., "Worldwide Federated Training of Language Models" (arXiv 2405.14446). Published: about 30 %
of the blocks are key layers, the backbone's mean is unweighted. All other defaults are choices of this project.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.sections.base import Section
from schemas.sections.values import Text, wrong

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Names = Annotated[list[Text], Field(min_length=1)]


class WorldLM(Section):
    """Key layers are averaged by attention over own, parent's and members' ones; the backbone by a plain mean."""

    key_layers: Count | Share | Names = Field(
        default=0.3,
        description="last blocks of the model that are key layers: their share, rounded to the nearest number and "
        "at least one, as published; or their number, 0 for none; or names of parameters",
        examples=[0.3, 4],
    )
    attention: Literal["cosine", "dot", "mean"] = Field(
        default="cosine",
        description="similarity of two nodes' key layers; dot and mean are for comparison (a choice)",
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        description="softness of attention. With cosine in units of 1 minus the mean cosine of the other rows: at "
        "1 a node's own row weighs e times an average other one, 0 keeps the own row, a large value gives the "
        "mean (a choice)",
    )
    own_row: bool = Field(
        default=True, description="flag: a node's own key layers take part in their mean, beside asking for it"
    )
    residuals: Literal["off", "region", "tree"] = Field(
        default="tree",
        description="what becomes of the member's key layers that the mean represents least: nothing; passed on "
        "among the members; or also handed up to the parent (a choice)",
    )
    rounds: int = Field(
        default=1, ge=1, description="rounds that this federation trains in each round of its parent (a choice)"
    )
    weights: Literal["uniform", "tokens"] = Field(
        default="uniform",
        description="weights of the members in both means: uniform, as published, or tokens really trained",
    )

    @model_validator(mode="after")
    def _temperature(self) -> "WorldLM":
        if self.temperature == 0 and self.attention == "dot":
            raise wrong("0 would keep the longest row with dot; write a number above 0", "temperature")
        if self.temperature == 0 and not self.own_row:
            raise wrong("0 keeps the own row, which own_row: false leaves out; drop one of them", "temperature")
        return self
