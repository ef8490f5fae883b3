"""Manifests: the store keeps one JSON file per commit beside the tensors. The rule: photon_core/store/store.py.

Sites write some of them, so every value has a bound (schemas/bounds.py): no number is too large to add, write or
draw, and no text is too long to show.
"""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from schemas.bounds import LIST_LIMIT, POOL_LIMIT, SHAPE_LIMIT, Bounded, Count, Finite, Listed, Name, Number, Text


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _without_defaults(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """A manifest without keys at their defaults: older manifests keep their bytes when they are rewritten."""
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


class TensorEntry(Manifest):
    """One tensor of a file, or its rows in that file. dtype in safetensors' names (F32, I32, ...)."""

    dtype: Name
    shape: tuple[Count, ...] = Field(max_length=SHAPE_LIMIT, description="shape of the whole tensor")
    rows: tuple[Count, Count] | None = Field(
        default=None,
        description="first row in this file and first row beyond it, for a tensor that several files share",
    )

    @property
    def held(self) -> tuple[int, ...]:
        """Shape of the part in this file."""
        return self.shape if self.rows is None else (self.rows[1] - self.rows[0], *self.shape[1:])

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), rows=None)


class FileEntry(Manifest):
    """One file that a manifest covers."""

    path: Text = Field(description="path relative to the manifest's folder, with forward slashes")
    sha256: Name
    blake3: Name = Field(
        default="", description="hash of the same bytes; readers check it if it is given, because it is faster"
    )
    bytes: Count
    tensors: dict[Text, TensorEntry] = Field(default_factory=dict, description="tensors of a safetensors file")

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), blake3="")


class RunManifest(Manifest):
    """<run>/run.json: the run's first manifest, created once."""

    run: str
    created: str = Field(description="UTC, ISO 8601")
    federation: dict[str, Any] = Field(description="federation file of the first round, with all defaults")
    federation_sha256: str
    tokenizer_sha256: str
    versions: dict[str, str]


class StreamData(Manifest):
    """One prepared stream of a site."""

    documents: Count
    tokens: Count = Field(description="tokens in the shards of both splits, without padding of the last sequence")
    source_sha256: str = Field(description="hash of the raw source's bytes")
    files: list[FileEntry] = Field(description="MDS shards and index.json of both splits")


class DataManifest(Manifest):
    """<data_dir>/data.json at the site: the result of `photon prepare`. Only its hash leaves the site."""

    site: str
    tokenizer_sha256: str
    sequence_length: Count
    vocab_size: Count
    train_documents: Count
    valid_documents: Count
    train_sequences: Count
    valid_sequences: Count
    train_tokens: Count
    valid_tokens: Count
    unigram_perplexity: Finite = Field(
        description="perplexity of the training split's unigram model (add-one smoothed) on the validation split"
    )
    streams: dict[str, StreamData]
    checks: dict[str, Any] = Field(default_factory=dict, description="results of the documents suite, by stream")
    settings_sha256: str = Field(
        description="hash of everything that the result depends on; `photon prepare` skips on equality"
    )
    versions: dict[str, str]


class Span(Manifest):
    """A phase of a site's work in a round, with its time."""

    phase: Text = Field(description="validate, download, train, encode, upload or evaluate")
    start: Number = Field(
        description="Unix time by the site's clock, in an update; seconds since the round was opened, in a round"
    )
    seconds: Number


class Attention(Manifest):
    """How one key layer of a node became a mean over a pool (photon_core/aggregation/attention.py)."""

    rows: list[Text] = Field(
        max_length=POOL_LIMIT,
        description="names of the rows: own, then parent, members by name, or residuals by origin",
    )
    scores: list[Number] = Field(max_length=POOL_LIMIT)
    weights: list[Number] = Field(max_length=POOL_LIMIT, description="float32 weights of the rows; their sum is 1")
    tau: Number
    norm: Number = Field(default=0.0, description="norm of the own row")
    distances: list[Number] = Field(
        default_factory=list, max_length=POOL_LIMIT, description="distances of the rows from the own one"
    )
    chosen: Name = Field(
        default="", description="option that was chosen for all key layers, if temperature is auto"
    )
    losses: dict[Name, Number] = Field(
        default_factory=dict,
        max_length=LIST_LIMIT,
        description="held-out loss of the node's model with each option",
    )

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), chosen="", losses={})


class ParentRef(Manifest):
    """The round of a parent federation that a child's round belongs to."""

    store: str = Field(description="URL of the parent's store")
    run: Name
    round: Count = Field(description="number of the parent's round that the child contributes to")
    sha256: Name = Field(description="hash of the previous round's round.json, whose model the child enters with")
    member: Name = Field(description="the child's name in the parent's file")
    attempt: Count = 1


class Residual(Manifest):
    """A key layer of one member that travels to another (photon_core/aggregation/residuals.py)."""

    layer: Text
    origin: list[Name] = Field(
        max_length=LIST_LIMIT,
        description="path of names to the origin, from a member of the federation that holds it or sent it down",
    )
    born: Count = Field(description="round of the origin's federation in which it was picked")
    hops: Count = Field(default=0, description="number of links that it has crossed")
    folder: Text = Field(description="folder of the files in the store of the round that names it")
    files: list[FileEntry]


class UpdateManifest(Manifest):
    """rounds/<t>/sites/<site>/<attempt>/update.json: a site's committed work for one round."""

    run: Name
    round: Count
    site: Name
    attempt: Count
    base_sha256: Name = Field(description="hash of the model (theta) from which local training started")
    base_dtype: Literal["F32", "BF16"] = Field(
        default="F32", description="BF16 if local training started from that model rounded to bfloat16"
    )
    codec: Name
    clip_norm: Number | None = Field(default=None, description="largest norm of the change before noise and codec")
    noise_multiplier: Number = Field(
        default=0.0, description="standard deviation of the noise that the site added, divided by clip_norm"
    )
    noise: Number = Field(
        default=0.0,
        description="standard deviation of all noise in each parameter of a federation's change to the backbone",
    )
    files: list[FileEntry]
    moments: list[FileEntry] = Field(
        default_factory=list, description="moments of the inner optimizer, if they are averaged"
    )
    key_layers: list[FileEntry] = Field(
        default_factory=list, description="whole key layers of the node, if the federation has any"
    )
    entry_sha256: Name = Field(
        default="", description="hash of the model that training started from, if it holds the node's key layers"
    )
    entry: dict[Text, Attention] = Field(default_factory=dict, description="key layer -> its attention at entry")
    residuals: list[Residual] = Field(
        default_factory=list,
        max_length=LIST_LIMIT,
        description="residuals that a federation hands up to its parent",
    )
    tokens: Count = Field(description="number of trained tokens, the update's weight")
    steps: Count
    metrics: dict[Text, Number] = Field(description="train_loss, tokens_per_second, seconds, delta_norm, ...")
    data_sha256: Name
    notes: Listed[Text] = Field(default_factory=list, description="messages for the operator, a sentence each")
    spans: Listed[Span] = Field(default_factory=list, description="phases of the site's work, with their times")
    checks: Listed[Bounded] = Field(
        default_factory=list,
        description="results of the data checks before training: expectation, column, observed, limit, success",
    )
    versions: dict[Name, Name]
    previous_sha256: Name = Field(description="hash of the previous round's round.json")
    work: Name = Field(
        default="",
        description="hash of the file's common settings with which the work was done; empty in early manifests",
    )
    protocol: Count = Field(
        default=0, description="protocol number of the site (schemas/protocol.py); 0 in early manifests"
    )

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(
            write(self),
            **{
                "work": "",
                "protocol": 0,
                "key_layers": [],
                "entry_sha256": "",
                "entry": {},
                "residuals": [],
                "noise": 0.0,
            },
        )


class UpdateRef(Manifest):
    """An aggregated update, as a round's manifest refers to it."""

    attempt: Count
    sha256: str = Field(description="hash of update.json")
    tokens: Count
    weight: Finite = Field(
        description="share of the mean (with FedNova, of the mean of metrics and moments); all shares sum to 1"
    )
    bytes: Count
    steps: Count
    metrics: dict[str, Finite]


class LastUpdate(Manifest):
    """A site's newest aggregated update, from which its private state continues."""

    round: Count
    attempt: Count
    data_tokens: Finite = Field(default=0.0, description="prepared tokens, as last reported by the site; else 0")


class StartRef(Manifest):
    """Origin of round 0's model, if it is not a function of the seed."""

    kind: str = Field(description="checkpoint, run or site")
    source: str = Field(description="path or URL of a checkpoint, location and round of a run, or name of a site")
    sha256: dict[str, str] = Field(description="hash of every source file (or manifest)")
    notes: list[str] = Field(default_factory=list, description="messages for the operator")


class StartManifest(Manifest):
    """rounds/000000/sites/<site>/0001/start.json: a site's model, from which the run starts."""

    run: Name
    site: Name
    files: list[FileEntry]
    sha256: dict[Text, Name] = Field(
        max_length=LIST_LIMIT, description="hash of every file of the site's checkpoint, by file name"
    )
    notes: Listed[Text] = Field(default_factory=list)
    attempt: Count = Field(default=1, description="number above 1 if the file's start was edited before round 0")
    asked: Name = Field(default="", description="hash of the file's start section; empty in early manifests")

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), attempt=1, asked="")


class PartialManifest(UpdateManifest):
    """rounds/<t>/regions/<region>/<inputs>/<attempt>/partial.json: the committed mean of a region's parameters.

    It is an update of all its sites together: its weight is the sum of their tokens.
    """

    parts: dict[str, UpdateRef] = Field(description="site -> its update; weight is its share of this mean")
    norms: dict[str, Finite] = Field(description="delta_norm/<site>, |theta - theta_k|")


class AttentionManifest(Manifest):
    """rounds/<t>/attention-<inputs>.json: the weights of a round's key layers, committed before their use.

    It commits no round. With it, every aggregation of the same updates, on any machine, uses the same weights.
    """

    run: str
    round: Count
    inputs: str = Field(description="hash of everything that the weights depend on")
    layers: dict[Text, Attention] = Field(description="key layer -> its weights")


class DownManifest(Manifest):
    """rounds/<t>/sites/<member>/down.json: the residuals with which a member enters the round, if any."""

    run: str
    round: Count
    member: str
    residuals: list[Residual] = Field(max_length=LIST_LIMIT)


class ShardRecord(Manifest):
    """rounds/<t>/finished/<inputs>/<number>.json: a finished shard of a pass over a round's updates.

    Not a commit: after an interruption, a pass over the same inputs checks that the files are complete and reuses
    them instead of recomputing them.
    """

    inputs: str = Field(description="hash of everything that the files depend on")
    number: Count
    files: list[FileEntry] = Field(description="a shard of the model, and the same shard of the optimizer's state")
    sums: list[Finite] = Field(description="sums for the norms, over these shards' elements")


class RoundManifest(Manifest):
    """rounds/<t>/round.json: the commit of round t, written last. Round 0 holds the initial model.

    A round without updates (`kind` other than train) trains nothing: it names the files and counters of round
    `to`, and the next round starts from there (photon_core/run/line.py).
    """

    run: str
    round: Count
    kind: Literal["train", "rollback", "entry"] = "train"
    to: Count | None = Field(
        default=None, description="round whose files a round without updates names, in that round's folder"
    )
    reason: str = Field(default="", description="reason for a round without updates, as its requester gave it")
    who: str = Field(default="", description="requester of a round without updates: a user, or a flow run")
    parent: ParentRef | None = Field(default=None, description="the parent's round, for an entry")
    entries: Count = Field(default=0, description="number of entries up to this round, including it")
    horizon: Count = Field(default=0, description="T of the learning-rate schedule, in steps, for an entry")
    key_layers: dict[str, list[str]] = Field(
        default_factory=dict, description="key layer -> its parameters, which have their own files"
    )
    attention: dict[str, Attention] = Field(
        default_factory=dict, description="key layer -> its attention over this round's pool"
    )
    up: list[Residual] = Field(default_factory=list, description="residuals for the parent")
    down: list[Residual] = Field(default_factory=list, description="residuals for the members of the next round")
    received: list[Residual] = Field(default_factory=list, description="residuals from the parent, for an entry")
    dropped: dict[str, Count] = Field(
        default_factory=dict, description="reason -> number of residuals that ended here"
    )
    model_sha256: str = Field(description="sha256 over the model files' hashes, in order")
    model: list[FileEntry]
    download: list[FileEntry] = Field(
        default_factory=list,
        description="model rounded to bfloat16, which sites download instead, if it exists",
    )
    optimizer: list[FileEntry] = Field(default_factory=list)
    moments: list[FileEntry] = Field(
        default_factory=list, description="mean of the sites' inner optimizer moments, from which they continue"
    )
    moment_sizes: dict[str, Finite] = Field(
        default_factory=dict,
        description="moment -> median size over the sites, which bounds the next round's: the norm, or the root "
        "of the sum for a mean of squares",
    )
    moment_ratio: Finite = Field(default=0.0, description="upper bound of exp_avg^2 / exp_avg_sq of the mean")
    sampled: list[str] = Field(default_factory=list)
    updates: dict[str, UpdateRef] = Field(default_factory=dict)
    earlier: dict[str, LastUpdate] | None = Field(
        default=None,
        description="site without an update in this round -> its newest earlier one; unknown in early manifests",
    )
    paused: list[str] = Field(default_factory=list, description="sites that the federation file pauses")
    left_out: dict[str, str] = Field(default_factory=dict, description="excluded site -> reason")
    partials: dict[str, str] = Field(
        default_factory=dict, description="partial.json -> its hash, for the regions' means that were combined"
    )
    incidents: dict[str, list[str]] = Field(
        default_factory=dict, description="site -> retries, restarts, lost states of its aggregated update"
    )
    start: StartRef | None = Field(default=None, description="origin of round 0's model, unless it is the seed")
    server: dict[str, Any] = Field(default_factory=dict, description="server optimizer and its numbers, as used")
    noise: Finite = Field(
        default=0.0,
        description="standard deviation of the noise that this round added to each parameter of the backbone",
    )
    lowered: int = Field(default=0, description="number of times that the guard lowered server.lr in this round")
    guard: list[str] = Field(
        default_factory=list, description="findings and actions of the guard, a sentence each, for people"
    )
    global_step: Count = Field(default=0, description="local steps so far: each round adds its largest step count")
    total_tokens: Count = 0
    behind: list[tuple[Count, Count]] = Field(
        default_factory=list,
        description="(first, last) of rounds that the model does not contain: rolled back or untrained",
    )
    metrics: dict[str, Finite] = Field(default_factory=dict)
    evaluations: dict[str, dict[str, Finite]] = Field(
        default_factory=dict, description="site -> {loss, perplexity, tokens} of this round's model"
    )
    not_evaluated: dict[str, str] = Field(default_factory=dict, description="site -> reason")
    federation_sha256: str
    previous_sha256: str = Field(default="", description="hash of round t-1's round.json; empty for round 0")
    seconds: dict[str, Finite] = Field(default_factory=dict)
    opened: str = Field(default="", description="start of the round, UTC, ISO 8601; empty in early manifests")
    spans: dict[str, list[Span]] = Field(default_factory=dict, description="site -> phases of its work")
    clocks: dict[str, Finite] = Field(
        default_factory=dict,
        description="site -> seconds by which its spans were shifted to fit into the round: its clock is wrong",
    )
    created: str
    versions: dict[str, str]

    @property
    def place(self) -> int:
        """Number of trained rounds in the model, including this one, as rounds.count counts them."""
        return self.round - self.entries - sum(last - first + 1 for first, last in self.behind)

    def left_behind(self, t: int) -> bool:
        """Whether the model does not contain round t: it was rolled back, or is itself a rollback."""
        return any(first <= t <= last for first, last in self.behind)

    @model_validator(mode="after")
    def _files_of_another(self) -> "RoundManifest":
        if (self.kind == "rollback") == (self.to is None) or (
            self.to is not None and not 0 <= self.to < self.round
        ):
            raise ValueError(
                f"a round {self.round} of kind '{self.kind}' cannot name the files of round {self.to}"
            )
        return self

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(
            write(self),
            **{"lowered": 0, "moment_sizes": {}, "moment_ratio": 0.0},
            **{"kind": "train", "to": None, "reason": "", "who": "", "earlier": None, "behind": []},
            **{"parent": None, "entries": 0, "horizon": 0},
            **{"key_layers": {}, "attention": {}, "up": [], "down": [], "received": [], "dropped": {}},
        )


class RemovalManifest(Manifest):
    """rounds/<t>/removed.json: `photon gc` has removed the round's tensors. Its other manifests are kept."""

    run: str
    round: Count
    files: Count = Field(description="number of files removed, or about to be removed when this was written")
    bytes: Count
    created: str = Field(description="UTC, ISO 8601")
