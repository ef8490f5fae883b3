"""A round's next global model before it is committed, and how the round went."""

import math
from dataclasses import dataclass, field

from photon_core.aggregation.aggregate import Aggregate
from photon_core.aggregation.key_layers import KeyLayers
from photon_core.aggregation.moments import Moments
from photon_core.aggregation.residuals import NOTHING, Partition
from photon_core.evidence.events import Event, Fact
from schemas.manifests import FileEntry, UpdateManifest
from schemas.sections.server import Server


@dataclass(frozen=True)
class Candidate:
    """The next global model, written but not committed.

    Args:
        t: the round.
        result: the model, and the norms of the step to it.
        updates: what was aggregated.
        server: settings as used, with the learning rate of this step.
        key_layers: those of the model, which the result does not hold; none without worldlm.
        residuals: what of the members' key layers goes up and down.
        moments: the mean of the sites' inner optimizer moments, where they are averaged.
        left_out: site -> why its update is not among them.
        groups: the regions that are averaged first; none where one server reads all.
        lowered: times that the guard has lowered server.lr.
        guard: what the guard has found and done.
        download: the model rounded to bfloat16, if that is what the sites fetch.
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
        """The result's norms; the model's is of its key layers, too."""
        norms = dict(self.result.norms)
        if self.key_layers.files and "model_norm" in norms:
            norms["model_norm"] = math.hypot(norms["model_norm"], math.sqrt(self.key_layers.squares))
        return norms


@dataclass(frozen=True)
class Course:
    """How a round went, apart from the model that it made.

    Args:
        sampled: the sites that were asked to train.
        evaluations: site -> scores of the model.
        not_evaluated: site -> why it has none.
        seconds: of the round's parts.
        opened: Unix time of its beginning.
        events: of the round, as the coordinator's process has seen them.
    """

    sampled: list[str]
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    not_evaluated: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    opened: float = 0.0
    events: list[Event] = field(default_factory=list)
