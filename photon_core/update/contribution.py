"""A contribution: what a member brings to a round, before it is committed as an update."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from photon_core.evidence.events import Fact
from schemas.manifests import Attention, FileEntry


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """A change of the model, and the facts about it. A site's comes from its training (`Trained`).

    A federation that is a member of another one contributes, too: its mean change, the sum of its members' tokens
    and the steps of its rounds. No field here is specific to training.

    Args:
        round, attempt: numbers of the round and of the attempt.
        base_sha256: hash of the model that the change starts from: the committed model of the previous round.
        codec: codec of `files`.
        tokens: tokens that were trained; the weight of the update.
        steps: local steps made.
        metrics: values by name; the register is evidence/metrics.py.
        files: shards of the encoded change, without key layers; paths are relative to `folder`.
        folder: private folder of the files.
        notes: facts for the operator: what went wrong without ending the work.
        moments: shards of the inner optimizer's moments in `folder`; empty unless moments are averaged.
        key_layers: shards of the whole key layers in `folder`; empty if there are none.
        entry_sha256: hash of the model that the work started from, if its key layers are the member's own.
        entry: attention by key layer, for those that are not the committed model's.
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
    notes: list[Fact] = field(default_factory=list)
    moments: list[FileEntry] = field(default_factory=list)
    key_layers: list[FileEntry] = field(default_factory=list)
    entry_sha256: str = ""
    entry: Mapping[str, Attention] = field(default_factory=dict)
