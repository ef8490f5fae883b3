"""The federation file's `server`: how the sites' updates become the next global model."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.section import Section
from schemas.values import wrong


class Server(Section):
    """ServerOpt of Algorithm 1, on pseudo-gradients."""

    optimizer: Literal["fedavg", "nesterov", "fedmom"] = "fedavg"
    lr: float = Field(
        default=1.0,
        gt=0,
        description="eta; 1 with fedavg takes the mean of the sites' models",
        examples=[1.0],
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="mu, for nesterov and fedmom", examples=[0.9])

    @model_validator(mode="after")
    def _momentum(self) -> "Server":
        if self.optimizer == "fedavg" and self.momentum:
            raise wrong(
                f"fedavg has no momentum, but {self.momentum:g} is given; drop it or use nesterov",
                "momentum",
            )
        return self
