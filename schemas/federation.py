"""The federation file: everything about a federation, in one YAML, checked by one model."""

from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.deploy import Deploy, PoolType, Storage, check_environment
from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS, apply_preset
from schemas.section import Section
from schemas.values import Beta, Fraction, Name, Place, Seconds, Text, wrong

BYTES_VOCABULARY = 257  # the tokenizer 'bytes': 256 bytes and end-of-text


class Model(Section):
    """The decoder-only transformer: learned positions, tied embeddings, GELU, biases (as MPT)."""

    preset: Literal["75M", "125M", "350M", "1.3B", "3B", "7B"] | None = Field(
        default=None, description="a published shape; other keys of this section override it"
    )
    n_layers: int = Field(ge=1, description="transformer blocks", examples=[12])
    d_model: int = Field(ge=1, description="width", examples=[768])
    n_heads: int = Field(ge=1, description="attention heads; must divide d_model", examples=[12])
    expansion_ratio: int = Field(default=4, ge=1, description="MLP width / d_model")
    vocab_size: int = Field(
        default=50_368, ge=2, description="rows of the embedding; at least the tokenizer's size"
    )
    max_seq_len: int = Field(default=2048, ge=2, description="tokens a sequence")

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


class Rounds(Section):
    count: int = Field(ge=1, description="rounds in all", examples=[10])
    sites_per_round: int | None = Field(default=None, ge=1, description="K of Algorithm 1; all sites if left out")
    quorum: int | None = Field(
        default=None, ge=1, description="least updates a round may commit with; all sampled if left out"
    )
    deadline: Seconds = Field(
        default=86_400.0,
        examples=["30m"],
        description="longest wait for the sites of a round (s, or 30m, 2h)",
    )
    evaluation_deadline: Seconds = Field(
        default=600.0, description="longest wait for the sites' evaluation of a round's model (s, or 30m, 2h)"
    )


class Optimizer(Section):
    """The inner optimizer, AdamW."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=6e-4, gt=0, description="maximum learning rate", examples=[6e-4])
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), examples=[[0.9, 0.95]])
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Schedule(Section):
    """Learning rate against the global step count; it does not restart with a round."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    total_steps: int | None = Field(
        default=None, ge=1, description="T of the cosine; rounds.count x local.steps if left out"
    )
    alpha: float = Field(default=0.1, ge=0, le=1, description="final / maximum learning rate")


class Logger(Section):
    """One of Composer's own loggers."""

    name: Literal["tensorboard", "mlflow", "wandb", "file"]
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of Composer's logger")


class Local(Section):
    """What a site does between two synchronisations."""

    steps: int = Field(ge=1, description="H, optimizer steps a round", examples=[128])
    batch_size: int = Field(ge=1, description="sequences a step and site", examples=[32])
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    clip_norm: float | None = Field(default=1.0, gt=0, description="gradient norm limit; null for none")
    optimizer_state: Literal["keep", "reset"] = Field(
        default="keep", description="AdamW's moments across rounds, at the site"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_steps: int | None = Field(
        default=100,
        ge=1,
        description="local steps between the site's own checkpoints, from which a killed training goes on; "
        "null for none",
    )
    loggers: list[Logger] = Field(default_factory=list)

    @model_validator(mode="after")
    def _precision(self) -> "Local":
        if self.device == "cpu" and self.precision == "amp_bf16":
            raise wrong("amp_bf16 does not train on the CPU; write fp32, or device: cuda", "precision")
        return self


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


class Data(Section):
    """Preparation and the limits that the expectation suites enforce."""

    validation_share: float = Field(
        default=0.05, gt=0, lt=1, description="share of documents held out, by document"
    )
    max_document_bytes: int = Field(default=10_000_000, ge=1)
    max_duplicate_share: Fraction = 0.2
    min_train_tokens: int | None = Field(
        default=None, ge=1, description="least tokens of a site; one batch if left out"
    )
    max_eot_share: Fraction = Field(default=0.2, description="largest share of end-of-text tokens in the shards")
    evaluation_sequences: int = Field(
        default=64, ge=1, description="held-out sequences a site evaluates each round"
    )


class Stream(Section):
    """One data source of a site."""

    name: Name
    source: Place = Field(
        examples=["texts/*.jsonl"],
        description="fsspec URL or path, globs allowed: .jsonl .txt .parquet (.gz .zst)",
    )
    text_key: Text = Field(default="text", description="the column or key that holds a document's text")
    proportion: float = Field(
        default=1.0, gt=0, le=1, description="share of the site's samples; a site's streams sum to 1"
    )


class Site(Section):
    name: Name
    pool: Name | None = Field(default=None, description="Prefect work pool; photon-<site> if left out")
    pool_type: PoolType | None = Field(default=None, description="its type; deploy.pool_type if left out")
    job_variables: dict[str, Any] = Field(
        default_factory=dict,
        description="what the pool's jobs get: env, image, resources; any key that the pool's template has",
    )
    streams: list[Stream] = Field(min_length=1, examples=["- {name: web, source: web/*.jsonl}"])
    state_dir: Text | None = Field(
        default=None,
        description="private folder of the site, on its own disk; photon-sites/<run>/<site> if left out",
    )

    @field_validator("streams")
    @classmethod
    def _streams(cls, streams: list[Stream]) -> list[Stream]:
        _unique("stream", [s.name for s in streams])
        total = sum(s.proportion for s in streams)
        if abs(total - 1) > 1e-6:
            given = " + ".join(f"{s.proportion:g}" for s in streams)
            scaled = [round(s.proportion / total, 4) for s in streams[:-1]]
            scaled.append(round(1 - sum(scaled), 4))
            raise wrong(
                f"the proportions {given} sum to {total:g}, not to 1; write {' + '.join(map(str, scaled))}"
            )
        return streams

    @field_validator("job_variables")
    @classmethod
    def _job_variables(cls, variables: dict[str, Any]) -> dict[str, Any]:
        check_environment(variables.get("env", {}))
        return variables

    @field_validator("state_dir")
    @classmethod
    def _state_dir(cls, state_dir: str | None) -> str | None:
        if state_dir is not None and "://" in state_dir:
            raise ValueError("is a URL, but private state stays on the site's own disk; write a folder")
        return state_dir


class Federation(Section):
    """The federation file."""

    preset: Literal["75M", "125M", "350M", "1.3B"] | None = Field(
        default=None,
        description="published model, rounds, schedule and server settings; other keys override them",
    )
    run: Name = Field(description="name of the run; its folder in the store", examples=["my-run"])
    store: Place = Field(description="fsspec URL or path: where rounds live", examples=["s3://bucket/photon"])
    seed: int = Field(default=17, ge=0, lt=2**31)
    tokenizer: Text = Field(
        description="'bytes', a path to a tokenizer.json, or a Hugging Face name", examples=["bytes"]
    )
    model: Model
    rounds: Rounds
    local: Local
    server: Server = Server()
    data: Data = Data()
    storage: Storage = Storage()
    deploy: Deploy = Deploy()
    sites: list[Site] = Field(min_length=1, examples=["- {name: site-a, streams: [...]}"])

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return apply_preset(data) if isinstance(data, dict) else data

    @field_validator("sites")
    @classmethod
    def _sites(cls, sites: list[Site]) -> list[Site]:
        _unique("site", [s.name for s in sites])
        return sites

    @field_validator("preset", mode="before")
    @classmethod
    def _published(cls, preset: Any) -> Any:
        if isinstance(preset, str) and preset in MODEL_PRESETS and preset not in FEDERATED_PRESETS:
            raise ValueError(
                "is a published shape without published federated settings; write it as model.preset, "
                f"and here one of {', '.join(FEDERATED_PRESETS)} or nothing"
            )
        return preset

    @field_validator("tokenizer")
    @classmethod
    def _tokenizer(cls, tokenizer: str) -> str:
        if tokenizer != "bytes" and tokenizer.lower() in ("byte", "bytes"):
            raise ValueError("is not a tokenizer; write 'bytes' for the one of single bytes")
        return tokenizer

    @model_validator(mode="after")
    def _counts(self) -> "Federation":
        sampled = self.rounds.sites_per_round or len(self.sites)
        if sampled > len(self.sites):
            raise wrong(
                f"{sampled} sites a round, but there are {len(self.sites)}; write at most {len(self.sites)}",
                *("rounds", "sites_per_round"),
            )
        if (self.rounds.quorum or sampled) > sampled:
            raise wrong(
                f"{self.rounds.quorum} updates, but a round samples {sampled} sites; write at most {sampled}",
                *("rounds", "quorum"),
            )
        schedule = self.local.schedule
        if schedule.name == "cosine" and schedule.warmup_steps >= self.schedule_steps and schedule.warmup_steps:
            raise wrong(
                f"{schedule.warmup_steps} steps of warm-up, but the schedule ends at {self.schedule_steps} "
                "(total_steps, or rounds.count x local.steps); write fewer",
                *("local", "schedule", "warmup_steps"),
            )
        if self.tokenizer == "bytes" and self.model.vocab_size < BYTES_VOCABULARY:
            raise wrong(
                f"{self.model.vocab_size} is below the size of the tokenizer 'bytes'; "
                f"write at least {BYTES_VOCABULARY}",
                *("model", "vocab_size"),
            )
        return self

    @model_validator(mode="after")
    def _state_dirs(self) -> "Federation":
        """Private state is one site's alone, and never under the run's folder in the shared store."""
        shared = None if "://" in self.store else PurePath(self.store, self.run)
        taken: dict[PurePath, str] = {}
        for i, site in enumerate(self.sites):
            if site.state_dir is None:
                continue
            folder, at = PurePath(site.state_dir), ("sites", i, "state_dir")
            if shared is not None and (folder == shared or shared in folder.parents):
                raise wrong(f"'{folder}' is in the shared store '{shared}'; write a folder outside it", *at)
            if taken.setdefault(folder, site.name) != site.name:
                raise wrong(f"'{folder}' belongs to site '{taken[folder]}'; give each site its own", *at)
        return self

    @model_validator(mode="after")
    def _pools(self) -> "Federation":
        """A work pool has one type, whoever shares it."""
        types = {self.coordinator_pool: self.deploy.pool_type}
        for i, site in enumerate(self.sites):
            pool, kind = self.site_pool(site.name), self.site_pool_type(site.name)
            if types.setdefault(pool, kind) != kind:
                raise wrong(
                    f"the work pool '{pool}' would be of type {kind} here and {types[pool]} elsewhere; "
                    "give the site a pool of its own (pool), or the same pool_type",
                    *("sites", i, "pool_type" if site.pool_type else "pool" if site.pool else "name"),
                )
        return self

    @model_validator(mode="after")
    def _storage(self) -> "Federation":
        for name in self.storage.for_s3:
            if not self.store.startswith(("s3://", "s3a://")):
                raise wrong(f"is for s3:// stores, but store is '{self.store}'; drop it", "storage", name)
        return self

    @property
    def coordinator_pool(self) -> str:
        """The work pool that the rounds themselves run on."""
        return self.deploy.pool or f"photon-{self.run}"

    def site_pool(self, name: str) -> str:
        """The work pool of a site."""
        return self.site(name).pool or f"photon-{name}"

    def site_pool_type(self, name: str) -> PoolType:
        return self.site(name).pool_type or self.deploy.pool_type

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
    for index, name in enumerate(names):
        other = seen.setdefault(name.lower(), name)
        if name in names[:index] or other != name:
            what = "is there twice" if other == name else f"differs from '{other}' only in case"
            raise wrong(f"the {kind} '{name}' {what}; give every {kind} a name of its own", index, "name")
