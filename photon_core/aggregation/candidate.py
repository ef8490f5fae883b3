"""A round's next global model before it is committed, and the record of the round."""

import math
from dataclasses import dataclass, field

from photon_core.aggregation.aggregate import Aggregate
from photon_core.aggregation.key_layers import KeyLayers
from photon_core.aggregation.moments import Moments
from photon_core.aggregation.residuals import NOTHING, Partition
from photon_core.evidence.events import Fact, Log
from schemas.manifests import FileEntry, UpdateManifest
from schemas.sections.server import Server


@dataclass(frozen=True)
class Candidate:
    """The next global model, written but not committed.

    Args:
        t: number of the round.
        result: model, and norms of the step to it.
        updates: updates that were aggregated, by site.
        server: settings as used, with the learning rate of this step.
        key_layers: key layers of the model, which the result does not hold; none without worldlm.
        residuals: residuals that go up and down.
        left_out: reasons by site, for the sites that are excluded.
        moments: mean of the sites' inner optimizer moments; empty unless moments are averaged.
        lowered: times that the guard has lowered server.lr.
        guard: findings and actions of the guard.
        groups: regions that are averaged first; empty if one server reads all updates.
        download: files of the model in bfloat16, if the sites fetch that; else empty.
    """

    t: int
    result: Aggregate
    updates: dict[str, UpdateManifest]
    server: Server
    left_out: dict[str, str] = field(default_factory=dict)
    key_layers: KeyLayers = field(default_factory=KeyLayers)
    residuals: Partition = NOTHING
    moments: Moments = field(default_factory=Moments)
    lowered: int = 0
    guard: list[Fact] = field(default_factory=list)
    groups: dict[int, list[str]] = field(default_factory=dict)
    download: list[FileEntry] = field(default_factory=list)

    @property
    def model(self) -> list[FileEntry]:
        """The model's files."""
        return [*self.result.model, *self.key_layers.files]

    @property
    def sent(self) -> list[FileEntry]:
        """The model's files that the sites fetch."""
        return self.download or self.model

    @property
    def norms(self) -> dict[str, float]:
        """The result's norms, and those of its key layers, which the model's is of, too."""
        norms = self.result.norms | self.key_layers.norms
        if self.key_layers.files and "model_norm" in norms:
            norms["model_norm"] = math.hypot(norms["model_norm"], math.sqrt(self.key_layers.squares))
        return norms


@dataclass(frozen=True)
class RoundLog:
    """Everything recorded about a round except its model.

    Args:
        sampled: sites that were sampled to train.
        evaluations: scores of the model by site.
        not_evaluated: reasons by site, for the sites without scores.
        seconds: duration by phase of the round.
        opened: Unix time at which the round was opened.
        events: event log of the coordinator's process; the commit appends what the guard and the bounds of claims
            find last.
    """

    sampled: list[str]
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    not_evaluated: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    opened: float = 0.0
    events: Log = field(default_factory=lambda: Log(""))
