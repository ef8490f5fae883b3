"""The federation file's `server`: how the sites' updates become the next global model."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.section import Section
from schemas.values import Beta, wrong

WITH_MOMENTUM = ("nesterov", "fedmom")
ADAPTIVE = ("fedadagrad", "fedyogi", "fedadam")


class ServerSchedule(Section):
    """The server's learning rate against the number of the round."""

    name: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="what follows the warm-up: lr for ever, or a way down to alpha x lr"
    )
    warmup_rounds: int = Field(default=0, ge=0, description="rounds of linear warm-up, from lr / warmup_rounds")
    total_rounds: int | None = Field(
        default=None, ge=1, description="where cosine and linear reach alpha x lr; rounds.count if left out"
    )
    alpha: float = Field(default=0.1, ge=0, le=1, description="final / maximum learning rate")


class Server(Section):
    """ServerOpt of Algorithm 1, on pseudo-gradients."""

    optimizer: Literal["fedavg", "nesterov", "fedmom", "fedadagrad", "fedyogi", "fedadam"] = "fedavg"
    lr: float = Field(
        default=1.0,
        gt=0,
        description="eta; 1 with fedavg takes the mean of the sites' models",
        examples=[1.0],
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="mu, for nesterov and fedmom", examples=[0.9])
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.99),
        description="of the moments of fedadagrad (the first alone), fedyogi and fedadam",
        examples=[[0.9, 0.99]],
    )
    tau: float = Field(default=1e-3, gt=0, description="adaptivity of fedadagrad, fedyogi and fedadam")
    schedule: ServerSchedule = ServerSchedule()

    @model_validator(mode="after")
    def _momentum(self) -> "Server":
        if self.optimizer not in WITH_MOMENTUM and self.momentum:
            other = "betas" if self.optimizer in ADAPTIVE else "nesterov"
            raise wrong(
                f"{self.optimizer} has no momentum, but {self.momentum:g} is given; drop it or use {other}",
                "momentum",
            )
        return self

    @model_validator(mode="after")
    def _adaptive(self) -> "Server":
        if self.optimizer in ADAPTIVE:
            if "lr" not in self.model_fields_set:
                raise wrong(
                    f"{self.optimizer} moves every parameter by about lr, so that the default of 1 will not do; "
                    "write lr, such as 0.01",
                    "optimizer",
                )
        else:
            for key in ("betas", "tau"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise wrong(f"is for {', '.join(ADAPTIVE)}, not for {self.optimizer}; drop it", key)
        return self
