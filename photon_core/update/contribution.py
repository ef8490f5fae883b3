"""A contribution: what a member brings to a round, before it is committed as an update."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.manifests import Attention, FileEntry


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The change of a model and the facts of it. A site's comes from its training (`Trained`).

    A federation that is a member of another brings one, too: its own mean change, its members' tokens in sum, the
    steps of its rounds. Nothing here is a training's alone.

    Args:
        round, attempt: the round, and the number of this try at it.
        base_sha256: hash of the model that the change starts from: the committed one of the round before.
        codec: codec of `files`.
        tokens: tokens really trained, the weight of the update.
        steps: local steps made.
        metrics: numbers by name, of the register (evidence/metrics.py).
        files: shards of the encoded change, the backbone's where there are key layers; paths relative to `folder`.
        folder: private folder of the files.
        notes: sentences for the operator.
        moments: shards of the inner optimizer's moments, where they are averaged, in `folder` too.
        key_layers: shards of the key layers, whole, where there are any, in `folder` too.
        entry_sha256: hash of the model that the work started from, where its key layers are the member's own.
        entry: key layer -> how it was entered with; those that are the committed model's are left out.
    """

    round: int
    attempt: int
    base_sha256: str
    codec: str
    tokens: int
    steps: int
    metrics: dict[str, float]
    files: list[FileEntry]
    folder: str
    notes: list[str] = field(default_factory=list)
    moments: list[FileEntry] = field(default_factory=list)
    key_layers: list[FileEntry] = field(default_factory=list)
    entry_sha256: str = ""
    entry: Mapping[str, Attention] = field(default_factory=dict)
