"""The federation file: everything about a federation, in one YAML, checked by one model."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from schemas.presets import MODEL_PRESETS, apply_preset

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _name(value: Any) -> Any:
    if isinstance(value, str) and (not NAME.fullmatch(value) or ".." in value):
        raise ValueError(
            "a name holds letters, digits, '.', '_' and '-', starts with a letter or digit, has no '..' "
            "and at most 63 characters"
        )
    return value


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = DURATION.fullmatch(value.strip())
        if not match:
            raise ValueError("a duration is a number of seconds, or like 90s, 30m, 2h, 1d")
        return float(match[1]) * SECONDS[match[2]]
    return value


Name = Annotated[str, BeforeValidator(_name)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Model(Section):
    """The decoder-only transformer: learned positions, tied embeddings, GELU, biases (MPT as in llm-foundry)."""

    preset: Literal["75M", "125M", "350M", "1.3B", "3B", "7B"] | None = Field(
        None, description="a published shape; other keys of this section override it"
    )
    n_layers: int = Field(ge=1, description="transformer blocks")
    d_model: int = Field(ge=1, description="width")
    n_heads: int = Field(ge=1, description="attention heads; must divide d_model")
    expansion_ratio: int = Field(4, ge=1, description="MLP width / d_model")
    vocab_size: int = Field(50_368, ge=2, description="rows of the embedding; at least the tokenizer's size")
    max_seq_len: int = Field(2048, ge=2, description="tokens a sequence")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") in MODEL_PRESETS:
            return {**MODEL_PRESETS[data["preset"]], **data}
        return data

    @model_validator(mode="after")
    def _heads(self) -> "Model":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self


class Rounds(Section):
    count: int = Field(ge=1, description="rounds in all")
    sites_per_round: int | None = Field(None, ge=1, description="K of Algorithm 1; all sites if left out")
    quorum: int | None = Field(None, ge=1, description="least updates a round may commit with; all sampled if left out")
    deadline: Seconds = Field(86_400.0, description="longest wait for the sites of a round (s, or 30m, 2h)")


class Optimizer(Section):
    """The inner optimizer, AdamW."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(6e-4, gt=0, description="maximum learning rate")
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class Schedule(Section):
    """Learning rate against the global step count; it does not restart with a round."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    total_steps: int | None = Field(None, ge=1, description="T of the cosine; rounds.count x local.steps if left out")
    alpha: float = Field(0.1, ge=0, le=1, description="final / maximum learning rate")


class Logger(Section):
    """One of Composer's own loggers."""

    name: Literal["tensorboard", "mlflow", "wandb", "file"]
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of Composer's logger")


class Local(Section):
    """What a site does between two synchronisations."""

    steps: int = Field(ge=1, description="H, optimizer steps a round")
    batch_size: int = Field(ge=1, description="sequences a step and site")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    clip_norm: float | None = Field(1.0, gt=0, description="gradient norm limit; null for none")
    optimizer_state: Literal["keep", "reset"] = Field("keep", description="AdamW's moments across rounds, at the site")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loggers: list[Logger] = Field(default_factory=list)


class Server(Section):
    """ServerOpt of Algorithm 1, on pseudo-gradients."""

    optimizer: Literal["fedavg", "nesterov", "fedmom"] = "fedavg"
    lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _momentum(self) -> "Server":
        if self.optimizer == "fedavg" and self.momentum:
            raise ValueError("fedavg has no momentum: leave it out, or use optimizer: nesterov")
        return self


class Data(Section):
    """Preparation and the limits that the expectation suites enforce."""

    validation_share: float = Field(0.05, gt=0, lt=1, description="share of documents held out, by document")
    max_document_bytes: int = Field(10_000_000, ge=1)
    max_duplicate_share: Fraction = 0.2
    min_train_tokens: int | None = Field(None, ge=1, description="least tokens of a site; one batch if left out")
    max_eot_share: Fraction = Field(0.2, description="largest share of end-of-text tokens in the shards")
    evaluation_sequences: int = Field(64, ge=1, description="held-out sequences a site evaluates each round")


class Stream(Section):
    """One data source of a site."""

    name: Name
    source: str = Field(min_length=1, description="fsspec URL or path, globs allowed: .jsonl .txt .parquet (.gz .zst)")
    text_key: str = Field("text", description="the column or key that holds a document's text")
    proportion: float = Field(1.0, gt=0, le=1, description="share of the site's samples; a site's streams sum to 1")


class Site(Section):
    name: Name
    pool: Name | None = Field(None, description="Prefect work pool; photon-<site> if left out")
    streams: list[Stream] = Field(min_length=1)
    state_dir: str | None = Field(None, description="private folder of the site; photon-sites/<run>/<site> if left out")

    @field_validator("streams")
    @classmethod
    def _streams(cls, streams: list[Stream]) -> list[Stream]:
        _unique("stream", [s.name for s in streams])
        total = sum(s.proportion for s in streams)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"proportions sum to {total:g}; make them sum to 1")
        return streams


class Federation(Section):
    """The federation file."""

    preset: Literal["75M", "125M", "350M", "1.3B"] | None = Field(
        None, description="published model, rounds, schedule and server settings; other keys override them"
    )
    run: Name = Field(description="name of the run; its folder in the store")
    store: str = Field(min_length=1, description="fsspec URL or path: where rounds live")
    seed: int = Field(17, ge=0, lt=2**31)
    tokenizer: str = Field(min_length=1, description="'bytes', a path to a tokenizer.json, or a Hugging Face name")
    model: Model
    rounds: Rounds
    local: Local
    server: Server = Server()
    data: Data = Data()
    sites: list[Site] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return apply_preset(data) if isinstance(data, dict) else data

    @field_validator("sites")
    @classmethod
    def _sites(cls, sites: list[Site]) -> list[Site]:
        _unique("site", [s.name for s in sites])
        return sites

    @model_validator(mode="after")
    def _counts(self) -> "Federation":
        sampled = self.rounds.sites_per_round or len(self.sites)
        if sampled > len(self.sites):
            raise ValueError(f"rounds.sites_per_round is {sampled}, but there are {len(self.sites)} sites")
        if (self.rounds.quorum or sampled) > sampled:
            raise ValueError(f"rounds.quorum is {self.rounds.quorum}, but a round samples {sampled} sites")
        return self

    @property
    def sites_per_round(self) -> int:
        return self.rounds.sites_per_round or len(self.sites)

    @property
    def quorum(self) -> int:
        return self.rounds.quorum or self.sites_per_round

    @property
    def schedule_steps(self) -> int:
        """T of the learning-rate schedule, in steps."""
        return self.local.schedule.total_steps or self.rounds.count * self.local.steps

    def site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)


def _unique(kind: str, names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            what = "is there twice" if other == name else f"and '{other}' differ only in case"
            raise ValueError(f"{kind} '{name}' {what}; every {kind} needs a name of its own")
