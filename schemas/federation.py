"""The federation file: all settings of a federation, in one YAML file, checked by one model."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS, NAMED, OURS, apply_preset, needs_recipe
from schemas.secrets import find_secrets
from schemas.sections.aggregation import Aggregation
from schemas.sections.base import Section
from schemas.sections.deploy import Deploy, Storage
from schemas.sections.local import Local
from schemas.sections.model import Model
from schemas.sections.overlap import overlap, refuse_as_written, run_folder
from schemas.sections.server import ALIKE, Server, refuse_beside_noise
from schemas.sections.sites import Site
from schemas.sections.start import Start
from schemas.sections.trackers import Tracker
from schemas.sections.tree import Child, Parent, layers, refuse_below_parent
from schemas.sections.update import Update
from schemas.sections.values import Fraction, Name, Place, Seconds, Text, unique, wrong
from schemas.sections.worldlm import WorldLM, refuse_beside

BYTES_VOCABULARY = 257  # the tokenizer 'bytes': 256 bytes and end-of-text
ROBUST_UPDATES = 3  # two updates have no middle one
ENDLESS = 10**9  # more rounds than any run trains
TREE: dict[str, Any] = {"worldlm": None, "federations": [], "parent": None}  # values in a file without a tree


class Rounds(Section):
    count: int | None = Field(ge=1, description="total number of rounds", examples=[10])
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
    worldlm: WorldLM | None = Field(
        default=None,
        description="key layers, which each node of a tree of federations keeps; default: none, or in a tree an "
        "empty section",
    )
    sites: list[Site] = Field(
        description="members that train on their own data; optional with federations",
        examples=["- {name: site-a, streams: [...]}"],
    )
    federations: list[Child] = Field(
        default_factory=list,
        description="members that are federations themselves",
        examples=["- {name: europe, federation: europe.yaml}"],
    )
    parent: Parent | None = Field(default=None, description="the federation that this one is a member of")

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
        return apply_preset(data, layers(data))

    @field_validator("sites")
    @classmethod
    def _sites(cls, sites: list[Site]) -> list[Site]:
        unique("site", [s.name for s in sites])
        return sites

    @field_validator("federations")
    @classmethod
    def _federations(cls, federations: list[Child], info: ValidationInfo) -> list[Child]:
        sites: list[Site] = info.data.get("sites", [])
        unique("member", [child.name for child in federations], [site.name for site in sites])
        return federations

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
    def _in_tree(self) -> "Federation":
        if not self.members:
            raise wrong("has 0 entries; write - {name: site-a, streams: [...]}", "sites")
        if self.parent is not None:
            refuse_below_parent(self.rounds.count, self.server, self.start)
            self._refuse_itself(self.parent)
        elif self.rounds.count is None:
            raise wrong("is empty; write a value such as 10", "rounds", "count")
        elif self.worldlm is not None and self.worldlm.rounds > 1:
            raise wrong("is for a federation with parent, and this one has none; drop it", "worldlm", "rounds")
        if self.worldlm is None:
            if self.parent is not None or self.federations:
                raise wrong("is null in a part of a tree; write worldlm: {key_layers: 0} for none", "worldlm")
            return self
        blocks, asked = self.model.n_layers, self.worldlm.key_layers
        if isinstance(asked, int) and asked > blocks:
            raise wrong(f"{asked} blocks, but the model has {blocks}; write at most that", "worldlm", "key_layers")
        refuse_beside(self.worldlm, self.server, self.update, self.aggregation)
        return self

    def _refuse_itself(self, parent: Parent) -> None:
        other = run_folder(("parent", "run"), "parent", parent)
        if how := overlap(other, run_folder(("run",), "run", self)):
            raise wrong(
                f"the parent's folder '{other.value}' {how} this run's own; write the parent's store and run, or "
                "give this run another name",
                *("parent", "run"),
            )

    @model_validator(mode="after")
    def _counts(self) -> "Federation":
        sampled, active = self.sites_per_round, len(self.active)
        kind = "members" if self.federations else "sites"
        if not active:
            raise wrong(
                f"all {kind} are paused; remove 'paused' from at least one",
                "sites" if self.sites else "federations",
            )
        if sampled > active:
            paused = f" that are not paused ({', '.join(self.paused)} are)" if self.paused else ""
            raise wrong(
                f"{sampled} {kind} a round, but there are {active}{paused}; write at most {active}",
                *("rounds", "sites_per_round"),
            )
        if (self.rounds.quorum or sampled) > sampled:
            raise wrong(
                f"{self.rounds.quorum} updates, but a round samples {sampled} {kind}; write at most {sampled}",
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
            remedy = f"write one of {', '.join(names)}" if names else "drop it"
            raise wrong(f"there is no site '{start.site}'; {remedy}", "start", "site")
        if start.run == self.run and start.store in (None, self.store):
            raise wrong("is this run itself; write the name of another run, or drop it", "start", "run")
        return self

    @model_validator(mode="after")
    def _moments(self) -> "Federation":
        noisy = [name for name in ("update", "server") if getattr(self, name).noise_multiplier]
        if self.local.optimizer_state == "average" and noisy:
            raise wrong(
                f"average{self._of_recipe} sends moments without the noise of {noisy[0]}.noise_multiplier; write "
                "keep",
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
    def _noise_on_mean(self) -> "Federation":
        if not self.server.noise_multiplier:
            return self
        refuse_beside_noise(self.server, self.update, self.aggregation, bool(self.federations))
        worldlm = self.worldlm if self.parent is not None else None
        if worldlm is not None and worldlm.key_layers != 0 and worldlm.residuals == "tree":
            raise wrong(
                "tree hands up single sites' key layers, without the noise of server.noise_multiplier; write "
                "region or off",
                *("worldlm", "residuals"),
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
        end = schedule.total_rounds or self.total_rounds
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
        if self.aggregation.tree_above is not None and self.server.discount_noise:
            raise wrong(
                "regions do not know each other's noise; drop it, or server.discount_noise",
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
        for what, at, one in self.placed():
            pool, kind = one.work_pool, one.pool_type or self.deploy.pool_type
            if pool == self.coordinator_pool and one.pool is None and self.deploy.pool is None:
                raise wrong(
                    f"the {what} has the run's name, and would share the coordinator's work pool '{pool}': each "
                    "would get the other's work; write pool: with another name here, or deploy.pool",
                    *(*at, "name"),
                )
            if types.setdefault(pool, kind) != kind:
                raise wrong(
                    f"the work pool '{pool}' would have type {kind} here and {types[pool]} elsewhere; "
                    f"give the {what} its own pool (pool), or the same pool_type",
                    *(*at, "pool_type" if one.pool_type else "pool" if one.pool else "name"),
                )
        return self

    def placed(self) -> Iterator[tuple[str, tuple[str, int], Site | Child]]:
        """The noun for each member in messages, its key in the file, and its section."""
        yield from (("site", ("sites", i), one) for i, one in enumerate(self.sites))
        yield from (("federation", ("federations", i), one) for i, one in enumerate(self.federations))

    @model_validator(mode="after")
    def _storage(self) -> "Federation":
        self.storage.check(self.store)
        return self

    @model_serializer(mode="wrap")
    def _flat(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without default values of a tree's keys, so that hashes of files without a tree stay the same."""
        data: dict[str, Any] = write(self)
        return {key: value for key, value in data.items() if key not in TREE or value != TREE[key]}

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
        said += [(one.work_pool, one.pool) for one in self.members]
        return {pool for pool, _ in said} - {pool for pool, name in said if name is None}

    @property
    def sites_per_round(self) -> int:
        return self.rounds.sites_per_round or len(self.active)

    @property
    def members(self) -> list[Site | Child]:
        """The sections of all members: sites, then federations."""
        return [*self.sites, *self.federations]

    @property
    def active(self) -> list[str]:
        """Names of the members that are not paused."""
        return [one.name for one in self.members if not one.paused]

    @property
    def paused(self) -> list[str]:
        """Names of the paused members."""
        return [one.name for one in self.members if one.paused]

    @property
    def quorum(self) -> int:
        return self.rounds.quorum or self.sites_per_round

    @property
    def key_layers(self) -> int | float | list[str]:
        """The file's choice of key layers; 0 for none."""
        return self.worldlm.key_layers if self.worldlm else 0

    @property
    def total_rounds(self) -> int:
        """Total number of rounds; ENDLESS below a parent, which sets no end."""
        return self.rounds.count or ENDLESS

    @property
    def schedule_steps(self) -> int:
        """T of the learning-rate schedule, in steps. Below a parent, T comes with each entry."""
        return self.local.schedule.total_steps or self.total_rounds * self.local.steps
