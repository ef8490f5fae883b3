"""Whether an update was made with the settings that the federation file has now."""

from photon_core.errors import UpdateRejected
from photon_core.training.job import work_sha256
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.protocol import PROTOCOL


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


def check_settings(federation: Federation, site: str, update: UpdateManifest, ended: str) -> None:
    """Refuse an update that was made with other settings than the file's.

    Raises:
        UpdateRejected: it was; the reason also says how the site's steps `ended`, if without a new attempt.
    """
    if update.protocol not in (0, PROTOCOL):  # 0: an early one, of an open round of an older store
        who = f"site '{site}'" if update.protocol < PROTOCOL else "the coordinator"
        numbers = f"its update has protocol {update.protocol}, the coordinator's Photon {PROTOCOL}"
        raise UpdateRejected(site, f"{numbers}: upgrade Photon at {who}")
    if different := other_settings(federation, update):
        raise UpdateRejected(site, f"{different}{f'; no new attempt came: {ended}' if ended else ''}")


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
