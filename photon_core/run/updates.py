"""A site's updates in a run: its attempts, and whether a round still accepts an update."""

from photon_core.errors import (
    FederationError,
    PhotonError,
    StoreConflict,
)
from photon_core.run.birth import check_recipe
from photon_core.run.line import last_updates, place_of, sentence
from photon_core.run.members import Member
from photon_core.run.run import Run, run_of
from photon_core.run.sampling import sampled_members
from schemas.federation import Federation
from schemas.manifests import FileEntry, UpdateManifest


def files_of_update(update: UpdateManifest) -> list[FileEntry]:
    """All files that an update's manifest names. They are in the folder of the update."""
    handed_up = [entry for residual in update.residuals for entry in residual.files]
    return [*update.files, *update.key_layers, *update.moments, *handed_up]


def last_contribution(run: Run, site: str, t: int) -> tuple[int, int] | None:
    """(round, attempt) of the site's newest aggregated update before round t, from which its data stream resumes.

    Only the rounds that round t - 1's model comes from count, not those that were rolled back.
    """
    last = last_updates(run, t - 1).get(site) if t > 0 and run.round(t - 1) else None
    return None if last is None else (last.round, last.attempt)


def next_attempt(run: Run, t: int, site: str) -> int:
    """One more than the site's committed attempts, so that an interrupted attempt resumes under its number."""
    return run.committed_attempt(t, site) + 1


def check_open(federation: Federation, t: int) -> None:
    """Refuse work for a round that is already committed, cannot start yet, or is not in the file.

    Raises:
        StoreConflict: round t is committed.
        FederationError: it is beyond rounds.count, or the file has another recipe than the run started with.
        PhotonError: round t - 1 is not committed.
    """
    run = run_of(federation)
    if run.round(t) is not None:
        raise StoreConflict(f"round {t} of run '{run.run}' is already committed and cannot change")
    if (place := place_of(run, t)) > federation.total_rounds:
        back = f", and round {t} would be number {place} after a rollback" if place != t else ""
        raise FederationError(
            f"round {t}: the file has {federation.rounds.count} rounds{back}; raise rounds.count"
        )
    check_recipe(run.run_manifest(), federation)
    if run.round(t - 1) is None:
        remedy = "run photon run, or wait for the next federated-round"
        raise PhotonError(f"round {t} of run '{run.run}' cannot start: round {t - 1} is not committed; {remedy}")


def check_asked(member: Member, t: int) -> None:
    """Refuse one member's work for a round that would not use it; also checks as `check_open`.

    Raises:
        FederationError: the member is paused, or not sampled in round t.
    """
    site, federation = member.name, member.federation
    if member.paused:
        raise FederationError(
            f"site '{site}' is paused, so no round samples it; remove its 'paused' from the file"
        )
    check_open(federation, t)
    if site not in (sampled := sampled_members(run_of(federation), federation, t)):
        raise FederationError(
            f"round {t} samples {len(sampled)} of {len(federation.active)} sites, and '{site}' is not among them: "
            f"it would not use the update. Round {t} samples: {', '.join(sampled)}"
        )


def check_in_time(run: Run, update: UpdateManifest) -> None:
    """Raise an error if the round was committed without the update.

    Raises:
        StoreConflict: the round was committed while the update was trained.
    """
    manifest, t, site = run.round(update.round), update.round, update.site
    if manifest is not None and manifest.kind != "train":
        raise StoreConflict(
            f"attempt {update.attempt} of site '{site}' for round {t} is not used: {sentence(manifest)}"
        )
    if manifest is not None and (site not in manifest.updates or manifest.updates[site].attempt != update.attempt):
        used = f"with attempt {manifest.updates[site].attempt}" if site in manifest.updates else "without the site"
        raise StoreConflict(
            f"attempt {update.attempt} of site '{site}' for round {t} arrived after the round was committed "
            f"{used}; it is ignored"
        )
