"""Which of a site's committed attempts counts as its update for a round."""

from collections.abc import Callable

from photon_core.aggregation.checks import check_manifest, check_moments
from photon_core.errors import CorruptFile, PhotonError, StoreRefused, StoreUnavailable
from photon_core.run.members import Party
from photon_core.run.run import Run
from photon_core.run.updates import next_attempt
from photon_core.update.settings import other_settings
from schemas.manifests import UpdateManifest

LOOK_BACK = 8  # attempts, from the newest, among which one of the file's settings is looked for


def committed_update(run: Run, party: Party, t: int) -> UpdateManifest | None:
    """The site's newest update for round t, of the file's settings, from the committed model of round t-1.

    Raises:
        CorruptFile: its newest manifest is not one, or not of its place.
    """
    base = run.round(t - 1)
    update = newest_update(run, party, t)
    if update is None or base is None or update.base_sha256 != base.model_sha256:
        return None
    return None if other_settings(party.federation, update) else update


def newest_update(run: Run, party: Party, t: int) -> UpdateManifest | None:
    """The site's newest committed update for round t, whatever it starts from: of those made with the file's
    settings if there is one, for a flow run that nobody waits for may commit later. Raises CorruptFile."""
    newest = next_attempt(run, t, party.name) - 1
    if not newest:
        return None
    update = run.update(t, party.name, newest)
    for attempt in range(newest, max(0, newest - LOOK_BACK), -1):
        try:
            older = run.update(t, party.name, attempt)
        except CorruptFile:
            continue
        if older is not None and not other_settings(party.federation, older):
            return older
    return update


def superseded(run: Run, party: Party, t: int) -> str:
    """Why the site's committed update for round t does not count, if that is for its settings; else empty."""
    try:
        update = newest_update(run, party, t)
    except CorruptFile:
        return ""
    return "" if update is None else other_settings(party.federation, update)


def is_done(
    run: Run,
    party: Party,
    t: int,
    attempt: int = 1,
    beat: Callable[[], None] = lambda: None,
) -> UpdateManifest | None:
    """The site's update for round t, of the file's settings and of this attempt or a later one, if it is whole.

    Args:
        beat: called with every block that is read; what it raises ends the reading.
    """
    try:
        base, update = run.round(t - 1), committed_update(run, party, t)
        if base is None or update is None or update.attempt < attempt:
            return None
        check_manifest(run, base, t, party.name, update)  # first: the model's size bounds that of every file
        check_moments(party.name, base, update)
        folder = run.site_dir(t, party.name, update.attempt)
        files = [*update.files, *update.key_layers, *update.moments]
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
    """There is no time left to read more."""


def wanted_attempt(
    run: Run,
    party: Party,
    t: int,
    attempt: int = 1,
    over: Callable[[], bool] = lambda: False,
) -> int:
    """The attempt from which on the site's update for round t counts: a committed one that is damaged, or was made
    with other settings than the file's, does not.

    Args:
        over: whether there is no time left to read its files: then it counts, and aggregation says what it is.
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
    """Whether the site's update of this attempt or a later one is committed. Its files are not read."""
    try:
        update = committed_update(run, party, t)
    except CorruptFile:
        return False
    return update is not None and update.attempt >= attempt
