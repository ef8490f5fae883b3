"""The job of a site's local training. The module is light, because launching processes import it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from photon_core.evidence.events import Log
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.model.key_layers import key_layers
from photon_core.update.settings import UNCOUNTED, UNCOUNTED_OF_SITE, horizon
from schemas.manifests import Attention
from schemas.view import SiteView


@dataclass(frozen=True)
class LocalJob:
    """One site's work for one round.

    Args:
        view: site, or one of its nodes.
        round: number of the round, from 1.
        attempt: number of the attempt, from 1; names the folder of the private state.
        base_files: local paths of theta's verified safetensors files; its key layers are the site's own.
        base_sha256: hash of the committed model.
        global_step: local steps before this round, for the learning rate.
        resume: (round, attempt) of the site's last aggregated update, whose private state training resumes from;
            None in the site's first round.
        threads: number of torch threads.
        moment_files: local paths of verified files with the optimizer's averaged moments; empty to use the site's
            own moments.
        announce: flag: report the path of every finished shard of the update, under `file`.
        behind: (first, last) of ranges of rolled-back rounds, whose private states are kept.
        entry_sha256: model hash of theta, if there are key layers.
        entry: attention by key layer, for those of `base_files` that are not the committed model's.
    """

    view: SiteView
    round: int
    attempt: int
    base_files: list[str]
    base_sha256: str
    global_step: int
    resume: tuple[int, int] | None = None
    threads: int = 1
    moment_files: list[str] = field(default_factory=list)
    announce: bool = False
    behind: Sequence[tuple[int, int]] = ()
    entry_sha256: str = ""
    entry: Mapping[str, Attention] = field(default_factory=dict)

    def log(self) -> Log:
        """A new log, for one process that does this work."""
        site = self.view.name
        return Log(self.view.federation.run, f"site:{site}").at(self.round, site, self.attempt)

    @property
    def key_layers(self) -> dict[str, list[str]]:
        """Key layer -> its parameters."""
        return key_layers(self.view.federation)

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on. Equal keys give equal results, but for the rounding of a
        micro-batch."""
        view = self.view
        whole = view.federation.model_copy(update={"local": view.local, "update": view.update})
        federation = whole.model_dump(mode="json", exclude=UNCOUNTED)
        site = view.section.model_dump(mode="json", exclude=UNCOUNTED_OF_SITE)
        parts = [federation, site, horizon(whole), self.round, self.base_sha256, self.global_step, self.resume]
        return sha256_bytes(canonical_json([*parts, self.entry_sha256] if self.entry_sha256 else parts))
