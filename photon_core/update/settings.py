"""The settings that a site's work depends on: their hash, and the check that an update was made with them."""

from typing import Any

from photon_core.errors import UpdateRejected
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.members import Party, is_federation
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.protocol import PROTOCOL

# Keys that do not change the result of a site's training. Training does not read them, or reads them for its
# speed, its place or its log alone, or for the rounding that `micro_batch: auto` may change during training
# anyway. Every other key counts, including new ones.
UNCOUNTED: dict[str, Any] = {
    **dict.fromkeys(("preset", "recipe"), True),  # the sections hold what they expand to
    **dict.fromkeys(("store", "storage", "server", "deploy", "trackers", "sites", "federations", "parent"), True),
    "rounds": {"count", "sites_per_round", "quorum", "deadline", "grace", "evaluation_deadline", "report_every"},
    "local": {
        **dict.fromkeys(("micro_batch", "memory_gb", "checkpoint_steps", "loggers"), True),
        "schedule": {"total_steps"},
    },
    "aggregation": {"tree_above", "fan_out", "memory_mib", "connections"},
    "data": {"min_train_tokens", "max_eot_share"},  # limits that are checked before training
    "worldlm": {"residuals", "rounds", "weights"},  # settings of the federation's coordinator
}
UNCOUNTED_OF_SITE = {
    *("paused", "pool", "pool_type", "job_variables", "state_dir", "data_tokens", "micro_batch", "link")
}


def other_settings(party: Party, update: UpdateManifest) -> str:
    """Why an update was not made with the file's settings (noise, clipping, codec, training); empty if it was.

    Early updates have no hash of the settings. Only clipping and noise, which they name, can be compared. A
    federation that is a member has its own file for them.
    """
    if is_federation(party):
        return ""
    federation = party.federation
    name, asked = f"its update (attempt {update.attempt})", federation.update
    for key in ("noise_multiplier", "clip_norm"):
        mine, theirs = getattr(asked, key), getattr(update, key)
        if mine != theirs:
            return f"{name} was made with update.{key} {_number(theirs)}, but the file has {_number(mine)}"
    if update.work and update.work != work_sha256(federation):
        return f"{name} was made with other settings than the file has now"
    return ""


def check_settings(party: Party, update: UpdateManifest, ended: str) -> None:
    """Refuse an update that was made with other settings than the file's.

    Raises:
        UpdateRejected: the settings differ. The reason includes how the site's steps `ended`, if they ended
            without a new attempt.
    """
    if update.protocol not in (0, PROTOCOL):  # 0: an early update, of an open round of an older store
        who = f"site '{party.name}'" if update.protocol < PROTOCOL else "the coordinator"
        numbers = f"its update has protocol {update.protocol}, the coordinator's Photon {PROTOCOL}"
        raise UpdateRejected(party.name, f"{numbers}: upgrade Photon at {who}")
    if different := other_settings(party, update):
        instead = f"; no new attempt was committed: {ended}" if ended else ""
        raise UpdateRejected(party.name, different + instead)


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def work_sha256(federation: Federation) -> str:
    """Hash of the settings that change the work of any site: noise, clipping, codec, local training.

    It does not cover a site's own section, which concerns that site alone. Keys at their default are not hashed,
    so that a new key does not change the hash of files that do not set it.
    """
    common = federation.model_dump(mode="json", exclude=UNCOUNTED, exclude_defaults=True)
    return sha256_bytes(canonical_json([common, horizon(federation)]))


def horizon(federation: Federation) -> int | None:
    """The length of the learning-rate schedule in steps; None if the rate does not depend on it."""
    return None if federation.local.schedule.name == "constant" else federation.schedule_steps
