"""Settings that change a site's work: their hash, and whether an update was made with those of the file."""

from typing import Any

from photon_core.errors import UpdateRejected
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.members import Party
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.protocol import PROTOCOL

# What a site's training does not read, or for its speed, its place or its log alone, or for the rounding that
# `micro_batch: auto` may change in the middle of it anyway. All else counts, new keys, too.
UNCOUNTED: dict[str, Any] = {
    **dict.fromkeys(("preset", "recipe"), True),  # what they stand for is in the sections
    **dict.fromkeys(("store", "storage", "server", "deploy", "trackers", "sites", "federations", "parent"), True),
    "rounds": {"count", "sites_per_round", "quorum", "deadline", "grace", "evaluation_deadline", "report_every"},
    "local": {
        **dict.fromkeys(("micro_batch", "memory_gb", "checkpoint_steps", "loggers"), True),
        "schedule": {"total_steps"},
    },
    "aggregation": {"tree_above", "fan_out", "memory_mib", "connections"},
    "data": {"min_train_tokens", "max_eot_share"},  # limits, checked before
    "worldlm": {"residuals", "rounds", "weights"},  # what the site's federation does, not the site
}
UNCOUNTED_OF_SITE = {
    *("paused", "pool", "pool_type", "job_variables", "state_dir", "data_tokens", "micro_batch", "link")
}


def other_settings(federation: Federation, update: UpdateManifest) -> str:
    """Why an update is not of the file's settings (noise, clipping, codec, local training); empty if it is.

    Early updates have no hash of them: only clipping and noise, which they name, can be compared.
    """
    name, asked = f"its update (attempt {update.attempt})", federation.update
    for key in ("noise_multiplier", "clip_norm"):
        mine, theirs = getattr(asked, key), getattr(update, key)
        if mine != theirs:
            return f"{name} was made with update.{key} {_number(theirs)}, and the file has {_number(mine)}"
    if update.work and update.work != work_sha256(federation):
        return f"{name} was made with other settings than the file has now"
    return ""


def check_settings(party: Party, update: UpdateManifest, ended: str) -> None:
    """Refuse an update that was made with other settings than the file's.

    Raises:
        UpdateRejected: it was; the reason also says how the site's steps `ended`, if without a new attempt.
    """
    if update.protocol not in (0, PROTOCOL):  # 0: an early one, of an open round of an older store
        who = f"site '{party.name}'" if update.protocol < PROTOCOL else "the coordinator"
        numbers = f"its update has protocol {update.protocol}, the coordinator's Photon {PROTOCOL}"
        raise UpdateRejected(party.name, f"{numbers}: upgrade Photon at {who}")
    if different := other_settings(party.federation, update):
        raise UpdateRejected(party.name, f"{different}{f'; no new attempt came: {ended}' if ended else ''}")


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def work_sha256(federation: Federation) -> str:
    """Hash of the settings that change the work of any site: noise, clipping, codec, local training.

    Never of a site's own entry, which is the site's affair. Keys at their default are left out, so that a new key
    does not change the hash of the files that do not write it.
    """
    common = federation.model_dump(mode="json", exclude=UNCOUNTED, exclude_defaults=True)
    return sha256_bytes(canonical_json([common, horizon(federation)]))


def horizon(federation: Federation) -> int | None:
    """All that the learning rate knows of the rounds."""
    return None if federation.local.schedule.name == "constant" else federation.schedule_steps
