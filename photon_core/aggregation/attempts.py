"""The choice among a site's committed attempts: the one that counts as its update for a round."""

from collections.abc import Callable

from photon_core.aggregation.checks import check_manifest, check_moments
from photon_core.errors import CorruptFile, PhotonError, StoreRefused, StoreUnavailable
from photon_core.run.members import Party
from photon_core.run.run import Run
from photon_core.run.updates import files_of_update, next_attempt
from photon_core.update.settings import other_settings
from schemas.manifests import UpdateManifest

LOOK_BACK = 8  # newest attempts that are searched for one with the file's settings


def committed_update(run: Run, party: Party, t: int) -> UpdateManifest | None:
    """The site's newest update for round t with the file's settings, from the committed model of round t-1.

    Raises:
        CorruptFile: the newest manifest is invalid, or belongs to another place.
    """
    base = run.round(t - 1)
    update = newest_update(run, party, t)
    if update is None or base is None or update.base_sha256 != base.model_sha256:
        return None
    return None if other_settings(party, update) else update


def newest_update(run: Run, party: Party, t: int) -> UpdateManifest | None:
    """The site's newest committed update for round t, whichever model it starts from.

    Updates with the file's settings come first: a flow run that nobody waits for may commit a newer one with
    others.

    Raises:
        CorruptFile: the newest manifest is invalid, or belongs to another place.
    """
    newest = next_attempt(run, t, party.name) - 1
    if not newest:
        return None
    update = run.update(t, party.name, newest)
    for attempt in range(newest, max(0, newest - LOOK_BACK), -1):
        try:
            older = run.update(t, party.name, attempt)
        except CorruptFile:
            continue
        if older is not None and not other_settings(party, older):
            return older
    return update


def superseded(run: Run, party: Party, t: int) -> str:
    """Why the settings of the site's committed update for round t rule it out; empty if they do not."""
    try:
        update = newest_update(run, party, t)
    except CorruptFile:
        return ""
    return "" if update is None else other_settings(party, update)


def is_done(
    run: Run,
    party: Party,
    t: int,
    attempt: int = 1,
    beat: Callable[[], None] = lambda: None,
) -> UpdateManifest | None:
    """The site's update for round t with the file's settings, of this attempt or a later one, if it is complete.

    Args:
        run, party, t: run, member and round.
        attempt: least number of the attempt.
        beat: callback for every block that is read; its exceptions end the reading.
    """
    try:
        base, update = run.round(t - 1), committed_update(run, party, t)
        if base is None or update is None or update.attempt < attempt:
            return None
        check_manifest(run, base, t, party.name, update)  # first: the model's size bounds the size of every file
        check_moments(party.name, base, update)
        folder = run.site_dir(t, party.name, update.attempt)
        files = files_of_update(update)
        if any(run.store.size(f"{folder}/{entry.path}") != entry.bytes for entry in files):
            return None
        for entry in files:
            run.store.check(entry, folder, beat)
        return update
    except (StoreUnavailable, StoreRefused):
        raise
    except (PhotonError, FileNotFoundError):
        return None


class _Over(Exception):
    """No time is left to read more."""


def required_attempt(
    run: Run,
    party: Party,
    t: int,
    attempt: int = 1,
    over: Callable[[], bool] = lambda: False,
) -> int:
    """The least attempt that counts as the site's update for round t.

    A committed attempt does not count if it is damaged, or was made with other settings than the file's.

    Args:
        run, party, t: run, member and round.
        attempt: least number of the attempt.
        over: function that returns True when no time is left to read the files. The update then counts, and
            aggregation judges it.
    """

    def beat() -> None:
        if over():
            raise _Over

    newest = next_attempt(run, t, party.name) - 1
    try:
        return attempt if newest < attempt or is_done(run, party, t, attempt, beat) else newest + 1
    except _Over:
        return attempt


def is_committed(run: Run, party: Party, t: int, attempt: int) -> bool:
    """Whether the site has committed an update of this attempt or a later one. Its files are not read."""
    try:
        update = committed_update(run, party, t)
    except CorruptFile:
        return False
    return update is not None and update.attempt >= attempt
