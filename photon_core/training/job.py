"""What a site's training is asked for and what it gives back. Light: the process that launches imports it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from photon_core.hashing import canonical_json, sha256_bytes
from schemas.federation import Federation
from schemas.manifests import FileEntry

# What a site's training does not read, or for its speed, its place or its log alone, or for the rounding that
# `micro_batch: auto` may change in the middle of it anyway. All else counts, new keys, too.
UNCOUNTED: dict[str, Any] = {
    **dict.fromkeys(("preset", "recipe"), True),  # what they stand for is in the sections
    **dict.fromkeys(("store", "storage", "server", "deploy", "trackers", "sites"), True),
    "rounds": {"count", "sites_per_round", "quorum", "deadline", "grace", "evaluation_deadline", "report_every"},
    "local": {
        **dict.fromkeys(("micro_batch", "memory_gb", "checkpoint_steps", "loggers"), True),
        "schedule": {"total_steps"},
    },
    "aggregation": {"tree_above", "fan_out", "memory_mib", "connections"},
    "data": {"min_train_tokens", "max_eot_share"},  # limits, checked before
}
UNCOUNTED_OF_SITE = {
    *("paused", "pool", "pool_type", "job_variables", "state_dir", "data_tokens", "micro_batch", "link")
}


def work_sha256(federation: Federation) -> str:
    """Hash of the settings that change the work of any site: noise, clipping, codec, local training.

    Never of a site's own entry, which is the site's affair. Keys at their default are left out, so that a new key
    does not change the hash of the files that do not write it.
    """
    common = federation.model_dump(mode="json", exclude=UNCOUNTED, exclude_defaults=True)
    return sha256_bytes(canonical_json([common, _horizon(federation)]))


def _horizon(federation: Federation) -> int | None:
    """All that the learning rate knows of the rounds."""
    return None if federation.local.schedule.name == "constant" else federation.schedule_steps


@dataclass(frozen=True)
class LocalJob:
    """One site's work for one round.

    Args:
        federation: the federation file.
        site: name of the site.
        round: number of the round, from 1.
        attempt: number of the attempt, from 1; names the folder of the private state.
        base_files: local paths of theta's safetensors files, verified.
        base_sha256: theta's model hash.
        global_step: local steps before this round, for the learning rate.
        resume: (round, attempt) of the site's last aggregated update, whose private state goes on; None at
            the site's first round.
        threads: torch threads.
        moment_files: local paths of the averaged moments of the optimizer, verified; the site's own go on where
            there are none.
        behind: (first, last) of rounds that a rollback has left behind: their private states are kept as they are.
        announce: report the path of every shard of the update as soon as it is finished, under `file`.
    """

    federation: Federation
    site: str
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

    @property
    def steps(self) -> int:
        """H, the local steps that the site is to make, unless its time limit ends them."""
        return self.federation.site_steps(self.site)

    @property
    def time_limit(self) -> float | None:
        """Seconds after which local training ends with the step under way."""
        return self.federation.site(self.site).time_limit

    @property
    def key(self) -> str:
        """Hash of all that the result depends on: equal keys, equal training, but for a micro-batch's rounding."""
        whole = self.federation
        federation = whole.model_dump(mode="json", exclude=UNCOUNTED)
        site = whole.site(self.site).model_dump(mode="json", exclude=UNCOUNTED_OF_SITE)
        parts = [federation, site, _horizon(whole), self.round, self.base_sha256, self.global_step, self.resume]
        return sha256_bytes(canonical_json(parts))


@dataclass(frozen=True)
class Trained:
    """A site's finished local training. Its files lie in `folder`, in the site's private state.

    Args:
        round, attempt, base_sha256: of the job.
        codec: how `files` are encoded.
        tokens: tokens really trained, the update's weight.
        steps: local steps made.
        metrics: train_loss (mean over the round's tokens), first_loss and last_loss (of one local step),
            tokens_per_second, seconds, delta_norm, samples; gradient_norm (before clipping) and activation_norm as
            means over the steps; mfu where the site declares its hardware; loss/<stream> and samples/<stream>
            where it has several streams; valid_loss and valid_tokens of the site's own model on its held-out text,
            if local.evaluate, and of each of several streams valid_loss/<stream> and valid_tokens/<stream>;
            data_tokens where sites are sampled by them; micro_batch where one is used; devices where several
            trained as one job, nodes where several trained apart (then all is the nodes' together); 1.0 under
            state_lost or stream_restarted where that has happened; resumed_at_step is the local step of the
            checkpoint that an interrupted training went on from.
        files: the update's shards, paths relative to `folder`.
        folder: the private state of this round and attempt.
        seconds: where the time of the process that finished went: load, dataset, trainer, fit, encode, save,
            and checkpoint, which is part of fit.
        notes: what the operator should know, one sentence each.
        moments: shards of the optimizer's moments, where they are averaged, in `folder` too.
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
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    moments: list[FileEntry] = field(default_factory=list)
