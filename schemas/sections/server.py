"""The federation file's section `server`: how the sites' updates become the next global model."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from schemas.sections.aggregation import Aggregation
from schemas.sections.base import Section
from schemas.sections.update import Update
from schemas.sections.values import Beta, only_for, wrong

WITH_MOMENTUM = ("nesterov", "fedmom")
ADAPTIVE = ("fedadagrad", "fedyogi", "fedadam")
ALIKE = ("median", "trimmed")  # means that weight all sites equally, and need all updates in one place
NOISE = {"noise_multiplier": 0.0, "discount_noise": False}


class ServerSchedule(Section):
    """The server's learning rate as a function of the round number."""

    name: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="course after the warm-up: constant lr, or a decay to alpha x lr"
    )
    warmup_rounds: int = Field(default=0, ge=0, description="rounds of linear warm-up, from lr / warmup_rounds")
    total_rounds: int | None = Field(
        default=None,
        ge=1,
        description="round in which cosine and linear reach alpha x lr; default: rounds.count when the run "
        "starts; raising it later changes nothing",
    )
    alpha: float = Field(default=0.1, ge=0, le=1, description="final / maximum learning rate")

    @model_validator(mode="after")
    def _constant(self) -> "ServerSchedule":
        for key in ("total_rounds", "alpha"):
            only_for(self, key, self.name, ["cosine", "linear"])
        return self


class Guard(Section):
    """Checks of each candidate model. A failed one is retried with the same updates and a lower learning rate."""

    norm_factor: float | None = Field(
        default=10.0,
        gt=1,
        description="limit of the server's step and of the model's norm, as a multiple of the running value; "
        "null: none",
    )
    loss_jump: float | None = Field(
        default=1.0,
        gt=0,
        description="limit of the validation loss above its running value (nats); null: none",
    )
    lr_factor: float = Field(default=0.5, gt=0, lt=1, description="factor of server.lr for each retry")
    tries: int = Field(default=3, ge=0, le=20, description="number of retries of a round; 0: no guard")


class Server(Section):
    """ServerOpt of Algorithm 1, on pseudo-gradients."""

    optimizer: Literal["fedavg", "nesterov", "fedmom", "fedadagrad", "fedyogi", "fedadam"] = "fedavg"
    lr: float = Field(
        default=1.0,
        gt=0,
        description="eta, the learning rate; 1 with fedavg gives the mean of the sites' models",
        examples=[1.0],
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="mu of nesterov and fedmom", examples=[0.9])
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.99),
        description="decay of the moments of fedadagrad (only the first), fedyogi and fedadam",
        examples=[[0.9, 0.99]],
    )
    tau: float = Field(default=1e-3, gt=0, description="adaptivity of fedadagrad, fedyogi and fedadam")
    schedule: ServerSchedule = ServerSchedule()
    weights: Literal["tokens", "uniform", "fednova"] = Field(
        default="tokens",
        description="weights of the sites in the mean: tokens really trained, uniform, or FedNova's normalised "
        "averaging",
    )
    mean: Literal["mean", "median", "trimmed", "norm_bounded"] = Field(
        default="mean",
        description="plain mean, or robust to a few bad sites: coordinate median, trimmed mean, bounded norms",
    )
    trim: float = Field(
        default=0.125, gt=0, lt=0.5, description="share of the sites that trimmed drops at each end, rounded up"
    )
    norm_bound: float = Field(
        default=2.0,
        gt=0,
        description="norm limit of a change in norm_bounded, as a multiple of the sites' median norm",
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the Gaussian noise that the coordinator adds to every parameter of the "
        "mean, divided by update.clip_norm times the largest share of a site",
        examples=[0.5],
    )
    discount_noise: bool = Field(
        default=False,
        description="flag: the noise in a member's change lowers its weight, by signal / (signal + noise)",
    )
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _momentum(self) -> "Server":
        if self.optimizer not in WITH_MOMENTUM and self.momentum:
            other = "betas" if self.optimizer in ADAPTIVE else "nesterov"
            raise wrong(
                f"{self.optimizer} has no momentum, but {self.momentum:g} is given; drop it, or use {other}",
                "momentum",
            )
        return self

    @model_validator(mode="after")
    def _adaptive(self) -> "Server":
        if self.optimizer in ADAPTIVE and "lr" not in self.model_fields_set:
            raise wrong(
                f"{self.optimizer} moves every parameter by about lr, so the default of 1 is too large; "
                "write lr, such as 0.01",
                "optimizer",
            )
        for key in ("betas", "tau"):
            only_for(self, key, self.optimizer, ADAPTIVE)
        return self

    @model_validator(mode="after")
    def _mean(self) -> "Server":
        if self.mean in ALIKE and self.weights == "fednova":
            raise wrong(f"fednova weights the sites, but a {self.mean} counts all equally; drop it", "weights")
        if self.discount_noise and self.weights == "fednova":
            raise wrong(
                "fednova weights the sites by their steps, not by their noise; write tokens or uniform", "weights"
            )
        if self.mean == "norm_bounded" and self.weights == "fednova":
            raise wrong(
                "fednova scales a change by the ratio of steps after norm_bounded has bounded it, which breaks "
                "the bound; write tokens or uniform",
                "weights",
            )
        only_for(self, "trim", self.mean, ["trimmed"], "mean: ")
        only_for(self, "norm_bound", self.mean, ["norm_bounded"], "mean: ")
        only_for(self, "discount_noise", self.mean, ["mean"], "mean: ")
        return self

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without default values of keys about noise, so that hashes of files without them stay the same."""
        data: dict[str, Any] = write(self)
        return {key: value for key, value in data.items() if key not in NOISE or value != NOISE[key]}


def refuse_beside_noise(server: Server, update: Update, aggregation: Aggregation, inner: bool) -> None:
    """Refuse values of other sections that contradict noise on the mean.

    Args:
        server, update, aggregation: sections of the file.
        inner: flag: members are federations.

    Raises:
        PydanticCustomError: at the key.
    """
    key = "server.noise_multiplier"
    if update.clip_norm is None:
        raise wrong(
            f"noise of {server.noise_multiplier:g} times update.clip_norm needs a clip_norm; write one, "
            "such as 1.0",
            *("server", "noise_multiplier"),
        )
    if server.mean != "mean":
        raise wrong(f"{server.mean} is no sum of clipped changes, as {key} needs; write mean", "server", "mean")
    if aggregation.tree_above is not None:
        raise wrong(
            f"regions' means would have no noise of {key}; drop it, or write update.noise_multiplier",
            *("aggregation", "tree_above"),
        )
    if inner:
        raise wrong(
            "the changes of federations are not clipped; give each of them its own noise, and drop this",
            *("server", "noise_multiplier"),
        )
