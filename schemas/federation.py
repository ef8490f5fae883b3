"""The federation file: all settings of a federation, in one YAML file, checked by one model."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS, NAMED, OURS, apply_preset, needs_recipe
from schemas.secrets import find_secrets
from schemas.sections.aggregation import Aggregation
from schemas.sections.base import Section
from schemas.sections.deploy import Deploy, Storage
from schemas.sections.local import Local
from schemas.sections.model import Model
from schemas.sections.overlap import refuse_as_written
from schemas.sections.server import ALIKE, Server
from schemas.sections.sites import Site
from schemas.sections.start import Start
from schemas.sections.trackers import Tracker
from schemas.sections.update import Update
from schemas.sections.values import Fraction, Name, Place, Seconds, Text, is_s3, unique, wrong

BYTES_VOCABULARY = 257  # the tokenizer 'bytes': 256 bytes and end-of-text
ROBUST_UPDATES = 3  # two updates have no middle one


class Rounds(Section):
    count: int = Field(ge=1, description="total number of rounds", examples=[10])
    sites_per_round: int | None = Field(default=None, ge=1, description="K of Algorithm 1; default: all sites")
    sampling: Literal["uniform", "tokens"] = Field(
        default="uniform",
        description="how sites are sampled: uniformly, or in proportion to their prepared tokens",
    )
    quorum: int | None = Field(
        default=None, ge=1, description="fewest updates with which a round may commit; default: all sampled sites"
    )
    deadline: Seconds = Field(
        default=86_400.0,
        examples=["30m"],
        description="longest wait for the sites of a round (s, or 30m, 2h)",
    )
    grace: Seconds | None = Field(
        default=60.0,
        description="longest wait for a manual retry of failed sites, once the quorum is met and all other sites "
        "are done (s, or 30m, 2h); null: until the deadline",
    )
    evaluation_deadline: Seconds = Field(
        default=600.0, description="longest wait for the sites' evaluation of a round's model (s, or 30m, 2h)"
    )
    report_every: int | None = Field(
        default=1, ge=1, description="rounds between two reports in the store and the Prefect UI; null: none"
    )


class Data(Section):
    """Preparation of the data, and the limits that the expectation suites enforce."""

    validation_share: float = Field(default=0.05, gt=0, lt=1, description="share of documents that are held out")
    max_document_bytes: int = Field(default=10_000_000, ge=1)
    max_duplicate_share: Fraction = 0.2
    min_train_tokens: int | None = Field(
        default=None, ge=1, description="fewest tokens of a site; default: one batch"
    )
    max_eot_share: Fraction = Field(default=0.2, description="largest share of end-of-text tokens in the shards")
    evaluation_sequences: int = Field(
        default=64, ge=1, description="held-out sequences that a site evaluates each round"
    )


class Federation(Section):
    """The federation file."""

    preset: Literal["75M", "125M", "350M", "1.3B"] | None = Field(
        default=None,
        description="published model, rounds, schedule and server settings; other keys override them",
    )
    recipe: Literal["photon", "fedmom", "diloco", "local-sgd", "unlike-sites"] | None = Field(
        default=None,
        description="training recipe, over the preset's settings; other keys override it; null: none. Default: "
        "the published settings of preset, else those of model.preset (fedmom), else unlike-sites",
    )
    run: Name = Field(description="name of the run; its folder in the store", examples=["my-run"])
    store: Place = Field(description="fsspec URL or path of the rounds", examples=["s3://bucket/photon"])
    seed: int = Field(default=17, ge=0, lt=2**31)
    tokenizer: Text = Field(
        description="'bytes', a path to a tokenizer.json, or a Hugging Face name", examples=["bytes"]
    )
    model: Model
    start: Start = Start()
    rounds: Rounds
    local: Local
    update: Update = Update()
    server: Server = Server()
    aggregation: Aggregation = Aggregation()
    data: Data = Data()
    storage: Storage = Storage()
    deploy: Deploy = Deploy()
    trackers: list[Tracker] = Field(
        default_factory=list,
        description="experiment trackers that get every round's metrics",
        examples=["[{name: tensorboard}]"],
    )
    sites: list[Site] = Field(min_length=1, examples=["- {name: site-a, streams: [...]}"])

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if secret := next(find_secrets(data), None):
            raise wrong(secret.message, *secret.place)
        if shape := needs_recipe(data):
            raise wrong(
                f"{shape} is a published shape without published federated settings, and the default recipe was "
                f"never measured at this size; write recipe: with one of {NAMED}, or null and your own settings",
                *("model", "preset"),
            )
        return apply_preset(data)

    @field_validator("sites")
    @classmethod
    def _sites(cls, sites: list[Site]) -> list[Site]:
        unique("site", [s.name for s in sites])
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
            raise ValueError("is not a tokenizer; write 'bytes' for the byte-level tokenizer")
        return tokenizer

    @model_validator(mode="after")
    def _counts(self) -> "Federation":
        sampled, active = self.sites_per_round, len(self.active)
        if not active:
            raise wrong("all sites are paused; remove 'paused' from at least one", "sites")
        if sampled > active:
            paused = f" that are not paused ({', '.join(self.paused)} are)" if self.paused else ""
            raise wrong(
                f"{sampled} sites a round, but there are {active}{paused}; write at most {active}",
                *("rounds", "sites_per_round"),
            )
        if (self.rounds.quorum or sampled) > sampled:
            raise wrong(
                f"{self.rounds.quorum} updates, but a round samples {sampled} sites; write at most {sampled}",
                *("rounds", "quorum"),
            )
        schedule = self.local.schedule
        warmup = schedule.warmup(self.schedule_steps)
        if schedule.name == "cosine" and warmup >= self.schedule_steps and warmup:
            raise wrong(
                f"{warmup} steps of warm-up, but the schedule ends at {self.schedule_steps} "
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
    def _start(self) -> "Federation":
        start, names = self.start, [site.name for site in self.sites]
        if start.site is not None and start.site not in names:
            raise wrong(f"there is no site '{start.site}'; write one of {', '.join(names)}", "start", "site")
        if start.run == self.run and start.store in (None, self.store):
            raise wrong("is this run itself; write the name of another run, or drop it", "start", "run")
        return self

    @model_validator(mode="after")
    def _moments(self) -> "Federation":
        if self.local.optimizer_state == "average" and self.update.noise_multiplier:
            raise wrong(
                f"average{self._of_recipe} sends moments without the noise of update.noise_multiplier; write keep",
                *("local", "optimizer_state"),
            )
        if self.local.optimizer_state == "average" and self.server.mean == "norm_bounded":
            raise wrong(
                f"average{self._of_recipe} takes the moments' plain mean, which one bad site can spoil: "
                "norm_bounded bounds only the parameters; write keep, or server.mean: median or trimmed",
                *("local", "optimizer_state"),
            )
        if self.update.moments_dtype != "float32" and self.local.optimizer_state != "average":
            raise wrong(
                "moments are sent only with local.optimizer_state: average; write that, or drop it",
                *("update", "moments_dtype"),
            )
        return self

    @model_validator(mode="after")
    def _budgets(self) -> "Federation":
        for i, site in enumerate(self.sites):
            if site.steps is not None and site.steps > self.local.steps:
                raise wrong(
                    f"{site.steps} steps, but local.steps is {self.local.steps}; write at most that",
                    *("sites", i, "steps"),
                )
            if site.time_limit is not None and site.time_limit >= self.rounds.deadline:
                raise wrong(
                    f"{site.time_limit:g} s of training do not end before rounds.deadline "
                    f"({self.rounds.deadline:g} s), after which the site is excluded; write less",
                    *("sites", i, "time_limit"),
                )
            if isinstance(site.micro_batch, int) and site.micro_batch > self.local.batch_size:
                raise wrong(
                    f"{site.micro_batch} sequences at once, but local.batch_size is {self.local.batch_size}; "
                    "write at most that, or auto",
                    *("sites", i, "micro_batch"),
                )
        return self

    @model_validator(mode="after")
    def _memory(self) -> "Federation":
        wanted = {site.micro_batch or self.local.micro_batch for site in self.sites}
        if self.local.memory_gb is not None and "auto" not in wanted:
            raise wrong("is for micro_batch: auto; write that, or drop it", "local", "memory_gb")
        return self

    @model_validator(mode="after")
    def _server_schedule(self) -> "Federation":
        schedule = self.server.schedule
        end = schedule.total_rounds or self.rounds.count
        if schedule.name != "constant" and schedule.warmup_rounds and schedule.warmup_rounds >= end:
            raise wrong(
                f"{schedule.warmup_rounds} rounds of warm-up, but the schedule ends at {end} (total_rounds, or "
                "rounds.count); write fewer",
                *("server", "schedule", "warmup_rounds"),
            )
        return self

    @model_validator(mode="after")
    def _tree(self) -> "Federation":
        if self.aggregation.tree_above is not None and self.server.mean in ALIKE:
            raise wrong(
                f"regions cannot be combined to a {self.server.mean} mean of their sites; drop it, or server.mean",
                *("aggregation", "tree_above"),
            )
        return self

    @model_validator(mode="after")
    def _robust(self) -> "Federation":
        if self.server.mean == "mean" or self.quorum >= ROBUST_UPDATES:
            return self
        remedy = f"write rounds.quorum: {ROBUST_UPDATES} or more, or drop it"
        if self.sites_per_round < ROBUST_UPDATES:
            remedy = f"drop it, or have {ROBUST_UPDATES} sites a round"
        raise wrong(
            f"{self.server.mean} needs {ROBUST_UPDATES} updates to detect a bad one, but a round may commit with "
            f"{self.quorum}; {remedy}",
            *("server", "mean"),
        )

    @model_validator(mode="after")
    def _places(self) -> "Federation":
        """Private state, shards and text belong to one site only. No written place overlaps with them."""
        refuse_as_written(self)
        return self

    @model_validator(mode="after")
    def _pools(self) -> "Federation":
        """A work pool has one type, also when several sites share it."""
        types = {self.coordinator_pool: self.deploy.pool_type}
        for i, site in enumerate(self.sites):
            pool, kind = site.work_pool, site.pool_type or self.deploy.pool_type
            if pool == self.coordinator_pool and site.pool is None and self.deploy.pool is None:
                raise wrong(
                    f"the site has the run's name, and would share the coordinator's work pool '{pool}': each "
                    "would get the other's work; write pool: with another name here, or deploy.pool",
                    *("sites", i, "name"),
                )
            if types.setdefault(pool, kind) != kind:
                raise wrong(
                    f"the work pool '{pool}' would have type {kind} here and {types[pool]} elsewhere; "
                    "give the site its own pool (pool), or the same pool_type",
                    *("sites", i, "pool_type" if site.pool_type else "pool" if site.pool else "name"),
                )
        return self

    @model_validator(mode="after")
    def _storage(self) -> "Federation":
        for name in self.storage.for_s3:
            if not is_s3(self.store):
                raise wrong(f"is for s3:// stores, but store is '{self.store}'; drop it", "storage", name)
        return self

    @property
    def _of_recipe(self) -> str:
        """For messages about a value that may come from the recipe and not from the file."""
        return f" (from recipe: {OURS})" if self.recipe == OURS else ""

    @property
    def coordinator_pool(self) -> str:
        """Work pool of the rounds themselves."""
        return self.deploy.pool or f"photon-{self.run}"

    @property
    def named_pools(self) -> set[str]:
        """Work pools that this file names for every user: files of other runs may name them, too."""
        said = [(self.coordinator_pool, self.deploy.pool)]
        said += [(site.work_pool, site.pool) for site in self.sites]
        return {pool for pool, _ in said} - {pool for pool, name in said if name is None}

    @property
    def sites_per_round(self) -> int:
        return self.rounds.sites_per_round or len(self.active)

    @property
    def active(self) -> list[str]:
        """Names of the sites that are not paused."""
        return [site.name for site in self.sites if not site.paused]

    @property
    def paused(self) -> list[str]:
        """Names of the paused sites."""
        return [site.name for site in self.sites if site.paused]

    @property
    def quorum(self) -> int:
        return self.rounds.quorum or self.sites_per_round

    @property
    def schedule_steps(self) -> int:
        """T of the learning-rate schedule, in steps."""
        return self.local.schedule.total_steps or self.rounds.count * self.local.steps
