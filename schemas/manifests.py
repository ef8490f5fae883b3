"""What the store keeps beside the tensors: one JSON manifest a commit. The rule: photon_core/store/store.py.

Sites write some of them, so everything has a bound (schemas/bounds.py): no number is too large to be added,
written or drawn, and no text too long to be shown.
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

from schemas.bounds import LIST_LIMIT, SHAPE_LIMIT, Bounded, Count, Finite, Listed, Name, Number, Text


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _without_defaults(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """A manifest without the keys that say nothing: older ones keep their bytes when they are written again."""
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


class TensorEntry(Manifest):
    """One tensor of a file, or the rows of it that the file holds. dtype in safetensors' names (F32, I32, ...)."""

    dtype: Name
    shape: tuple[Count, ...] = Field(max_length=SHAPE_LIMIT, description="of the whole tensor")
    rows: tuple[Count, Count] | None = Field(
        default=None, description="of a tensor that several files share: the first row here, and the first beyond"
    )

    @property
    def held(self) -> tuple[int, ...]:
        """Shape of what the file holds."""
        return self.shape if self.rows is None else (self.rows[1] - self.rows[0], *self.shape[1:])

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), rows=None)


class FileEntry(Manifest):
    """One file that a manifest covers."""

    path: Text = Field(description="relative to the manifest's own folder, with forward slashes")
    sha256: Name
    blake3: Name = Field(
        default="", description="of the same bytes; readers check it where it is given, being the faster one"
    )
    bytes: Count
    tensors: dict[Text, TensorEntry] = Field(default_factory=dict, description="for safetensors files")

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), blake3="")


class RunManifest(Manifest):
    """<run>/run.json: the run's birth certificate, created once."""

    run: str
    created: str = Field(description="UTC, ISO 8601")
    federation: dict[str, Any] = Field(description="the federation file as first run, all defaults filled in")
    federation_sha256: str
    tokenizer_sha256: str
    versions: dict[str, str]


class StreamData(Manifest):
    """One prepared stream of a site."""

    documents: Count
    tokens: Count = Field(description="tokens in the shards of both splits, padding of the last sequence dropped")
    source_sha256: str = Field(description="hash of the raw source's bytes")
    files: list[FileEntry] = Field(description="MDS shards and index.json of both splits")


class DataManifest(Manifest):
    """<data_dir>/data.json at the site: what `photon prepare` made. Never leaves the site; its hash does."""

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
        description="hash of everything that the result depends on; prepare skips on equality"
    )
    versions: dict[str, str]


class Span(Manifest):
    """Something that a site did in a round, from when to when."""

    phase: Text = Field(description="validate, download, train, encode, upload or evaluate")
    start: Number = Field(
        description="in an update: Unix time by the site's clock; in a round: seconds after the round was opened"
    )
    seconds: Number


class Attention(Manifest):
    """How one key layer of a node became a mean over a pool (photon_core/aggregation/attention.py)."""

    rows: list[Text] = Field(
        max_length=LIST_LIMIT, description="own, then parent, members by name, or residuals by origin"
    )
    scores: list[Number] = Field(max_length=LIST_LIMIT)
    weights: list[Number] = Field(max_length=LIST_LIMIT, description="float32, of the rows; they sum to 1")
    tau: Number


class ParentRef(Manifest):
    """The round of a parent federation that a child's round belongs to."""

    store: str = Field(description="URL of the parent's store")
    run: Name
    round: Count = Field(description="of the parent: the one that the child contributes to")
    sha256: Name = Field(description="hash of the round.json before it, whose model was entered with")
    member: Name = Field(description="the child's name in the parent's file")
    attempt: Count = 1


class Residual(Manifest):
    """A key layer of one member on its way to another (photon_core/aggregation/residuals.py)."""

    layer: Text
    origin: list[Name] = Field(
        max_length=LIST_LIMIT,
        description="names down to the origin, from a member of the federation that holds it or sent it down",
    )
    born: Count = Field(description="round, of the origin's own federation, in which it was picked")
    hops: Count = Field(default=0, description="links that it has crossed")
    folder: Text = Field(description="folder of the files in the store of the round that names it")
    files: list[FileEntry]


class UpdateManifest(Manifest):
    """rounds/<t>/sites/<site>/<attempt>/update.json: a site's committed work for one round."""

    run: Name
    round: Count
    site: Name
    attempt: Count
    base_sha256: Name = Field(description="model hash of the theta that local training started from")
    base_dtype: Literal["F32", "BF16"] = Field(
        default="F32", description="BF16 if local training started from that theta rounded to bfloat16"
    )
    codec: Name
    clip_norm: Number | None = Field(default=None, description="largest norm of the change before noise and codec")
    noise_multiplier: Number = Field(
        default=0.0, description="standard deviation of the noise that the site added, over clip_norm"
    )
    files: list[FileEntry]
    moments: list[FileEntry] = Field(
        default_factory=list, description="the inner optimizer's moments, where they are averaged"
    )
    key_layers: list[FileEntry] = Field(
        default_factory=list, description="the node's key layers, whole, where the federation has any"
    )
    entry_sha256: Name = Field(
        default="", description="hash of the model that training started from, where its key layers are the node's"
    )
    entry: dict[Text, Attention] = Field(default_factory=dict, description="key layer -> how it was entered with")
    residuals: list[Residual] = Field(
        default_factory=list, max_length=LIST_LIMIT, description="handed up by a member that is a federation"
    )
    tokens: Count = Field(description="tokens really trained: the update's weight")
    steps: Count
    metrics: dict[Text, Number] = Field(description="train_loss, tokens_per_second, seconds, delta_norm, ...")
    data_sha256: Name
    notes: Listed[Text] = Field(default_factory=list, description="what the operator should know, a sentence each")
    spans: Listed[Span] = Field(default_factory=list, description="what the site did, and when")
    checks: Listed[Bounded] = Field(
        default_factory=list,
        description="what the data met before training: expectation, column, observed, limit, success",
    )
    versions: dict[Name, Name]
    previous_sha256: Name = Field(description="hash of the previous round's round.json")
    work: Name = Field(
        default="",
        description="hash of the file's common settings that the work was done with; empty in early manifests",
    )
    protocol: Count = Field(
        default=0, description="schemas/protocol.py's number at the site; 0 in early manifests"
    )

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(
            write(self),
            **{"work": "", "protocol": 0, "key_layers": [], "entry_sha256": "", "entry": {}, "residuals": []},
        )


class UpdateRef(Manifest):
    """How a round's manifest names an update that it aggregated."""

    attempt: Count
    sha256: str = Field(description="hash of update.json")
    tokens: Count
    weight: Finite = Field(
        description="share of the mean (with FedNova, of the metrics' and moments'), sums to 1 over the updates"
    )
    bytes: Count
    steps: Count
    metrics: dict[str, Finite]


class LastUpdate(Manifest):
    """A site's newest aggregated update: what its private state goes on from."""

    round: Count
    attempt: Count
    data_tokens: Finite = Field(default=0.0, description="that the site has prepared, as it last said; 0 if not")


class StartRef(Manifest):
    """Where the model of round 0 came from, when it is not a function of the seed."""

    kind: str = Field(description="checkpoint, run or site")
    source: str = Field(description="path or URL, the run's place and round, or the site's name")
    sha256: dict[str, str] = Field(description="hash of every file (or manifest) that it was made from")
    notes: list[str] = Field(default_factory=list, description="what the operator should know")


class StartManifest(Manifest):
    """rounds/000000/sites/<site>/0001/start.json: the model that a site holds and the run starts from."""

    run: Name
    site: Name
    files: list[FileEntry]
    sha256: dict[Text, Name] = Field(
        max_length=LIST_LIMIT, description="hash of every file of the site's checkpoint, by file name"
    )
    notes: Listed[Text] = Field(default_factory=list)
    attempt: Count = Field(default=1, description="above 1 where the file's start was edited before round 0")
    asked: Name = Field(default="", description="hash of the file's start section; empty in early manifests")

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(write(self), attempt=1, asked="")


class PartialManifest(UpdateManifest):
    """rounds/<t>/regions/<region>/<inputs>/<attempt>/partial.json: the mean of some sites' parameters, committed.

    It is an update of all of them together, with their tokens in sum, which the next server up weighs as such.
    """

    parts: dict[str, UpdateRef] = Field(description="site -> its update; weight is its share of this mean")
    norms: dict[str, Finite] = Field(description="delta_norm/<site>, |theta - theta_k|")


class AttentionManifest(Manifest):
    """rounds/<t>/attention-<inputs>.json: the weights of a round's key layers, before they are used.

    Not a commit: it lets every aggregation of the same updates, on whatever machine, use the same weights.
    """

    run: str
    round: Count
    inputs: str = Field(description="hash of all that the weights depend on")
    layers: dict[Text, Attention] = Field(description="key layer -> its weights")


class DownManifest(Manifest):
    """rounds/<t>/sites/<member>/down.json: the residuals that a member enters the round with, if there are any."""

    run: str
    round: Count
    member: str
    residuals: list[Residual] = Field(max_length=LIST_LIMIT)


class ShardRecord(Manifest):
    """rounds/<t>/finished/<inputs>/<number>.json: what a pass over a round's updates has finished so far.

    Not a commit: it lets a pass over the same inputs, after an interruption, take the files instead of making
    them again, once it has seen that they are whole.
    """

    inputs: str = Field(description="hash of all that the files depend on")
    number: Count
    files: list[FileEntry] = Field(description="a shard of the model, and the same shard of the optimizer's state")
    sums: list[Finite] = Field(description="of the norms, over these shards' elements")


class RoundManifest(Manifest):
    """rounds/<t>/round.json: the commit of round t, written last. Round 0 holds the initial model.

    A round without updates (`kind` other than train) trains nothing: it names the files and counters of the round
    `to`, and the next round starts from there (photon_core/run/line.py).
    """

    run: str
    round: Count
    kind: Literal["train", "rollback", "entry"] = "train"
    to: Count | None = Field(
        default=None, description="of a round without updates: the round whose files, in its folder, it names"
    )
    reason: str = Field(default="", description="of a round without updates, by whoever asked for it")
    who: str = Field(default="", description="who asked for a round without updates: a user, or a flow run")
    parent: ParentRef | None = Field(default=None, description="of an entry: the parent's round")
    entries: Count = Field(default=0, description="entries so far, this one included")
    horizon: Count = Field(default=0, description="of an entry: T of the learning-rate schedule, in steps")
    key_layers: dict[str, list[str]] = Field(
        default_factory=dict, description="key layer -> its parameters, which have files of their own"
    )
    attention: dict[str, Attention] = Field(
        default_factory=dict, description="key layer -> how it became the mean of this round's pool"
    )
    up: list[Residual] = Field(default_factory=list, description="residuals for the parent")
    down: list[Residual] = Field(default_factory=list, description="residuals for the members of the next round")
    received: list[Residual] = Field(default_factory=list, description="of an entry: residuals of the parent")
    dropped: dict[str, Count] = Field(default_factory=dict, description="why a residual ended here -> how many")
    model_sha256: str = Field(description="sha256 over the model files' hashes, in order")
    model: list[FileEntry]
    download: list[FileEntry] = Field(
        default_factory=list,
        description="the model rounded to bfloat16, which sites fetch instead, if there is one",
    )
    optimizer: list[FileEntry] = Field(default_factory=list)
    moments: list[FileEntry] = Field(
        default_factory=list, description="the mean of the sites' inner optimizer moments, which they go on from"
    )
    moment_sizes: dict[str, Finite] = Field(
        default_factory=dict,
        description="moment -> the sites' median size, which the next round's are held to: the norm, or the root "
        "of the sum of what is a mean of squares",
    )
    moment_ratio: Finite = Field(default=0.0, description="most that exp_avg^2 / exp_avg_sq of the mean can be")
    sampled: list[str] = Field(default_factory=list)
    updates: dict[str, UpdateRef] = Field(default_factory=dict)
    earlier: dict[str, LastUpdate] | None = Field(
        default=None,
        description="site without an update in this round -> its newest one before; not known in early manifests",
    )
    paused: list[str] = Field(default_factory=list, description="sites that took no part, by the federation file")
    left_out: dict[str, str] = Field(default_factory=dict, description="sampled site -> reason")
    partials: dict[str, str] = Field(
        default_factory=dict, description="partial.json -> its hash: the regions' means that were combined, if any"
    )
    incidents: dict[str, list[str]] = Field(
        default_factory=dict, description="site -> retries, restarts, lost states of an update that was aggregated"
    )
    start: StartRef | None = Field(default=None, description="of round 0, unless its model is made from the seed")
    server: dict[str, Any] = Field(default_factory=dict, description="server optimizer and its numbers, as used")
    lowered: int = Field(default=0, description="times that the guard has lowered server.lr for this round")
    guard: list[str] = Field(
        default_factory=list, description="what the guard has found and done, a sentence each, for people"
    )
    global_step: Count = Field(
        default=0, description="local steps so far: grows by the round's largest step count"
    )
    total_tokens: Count = 0
    behind: list[tuple[Count, Count]] = Field(
        default_factory=list,
        description="(first, last) of the rounds that the model does not come from: rolled back or untrained",
    )
    metrics: dict[str, Finite] = Field(default_factory=dict)
    evaluations: dict[str, dict[str, Finite]] = Field(
        default_factory=dict, description="site -> {loss, perplexity, tokens} of this round's model"
    )
    not_evaluated: dict[str, str] = Field(default_factory=dict, description="site -> reason")
    federation_sha256: str
    previous_sha256: str = Field(default="", description="hash of round t-1's round.json; empty for round 0")
    seconds: dict[str, Finite] = Field(default_factory=dict)
    opened: str = Field(default="", description="UTC, ISO 8601: when the round began; empty in early manifests")
    spans: dict[str, list[Span]] = Field(default_factory=dict, description="site -> what it did, and when")
    clocks: dict[str, Finite] = Field(
        default_factory=dict,
        description="site -> seconds that its spans had to be moved by to fit into the round: its clock is off",
    )
    created: str
    versions: dict[str, str]

    @property
    def place(self) -> int:
        """Trained rounds that the model comes from, this one included: what rounds.count counts."""
        return self.round - self.entries - sum(last - first + 1 for first, last in self.behind)

    def left_behind(self, t: int) -> bool:
        """Whether the model comes from round t no more: it was rolled back, or is a rollback itself."""
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
    """rounds/<t>/removed.json: `photon gc` took the round's tensors away. Its other manifests stay."""

    run: str
    round: Count
    files: Count = Field(description="removed, or about to be, when this was written")
    bytes: Count
    created: str = Field(description="UTC, ISO 8601")
