"""Whose fault it is when a site's objects cannot be read or decoded.

Whatever goes wrong while they are read or decoded is that site's, except what may be the machine's or the store's:
a store that is away, a full disk, no memory, no descriptors. Then the site's objects are looked at again, alone,
beside a file of ours. What fails again, while ours can be read, is that site's; else the step fails with what it
met, to be tried again.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

from photon_core.errors import PhotonError, StoreRefused, StoreUnavailable, Unreadable, UpdateRejected
from photon_core.run.run import Run
from photon_core.tensors.reader import Array, Load
from schemas.manifests import UpdateManifest
from schemas.server_errors import told

T = TypeVar("T")

UNSURE = (OSError, MemoryError, StoreUnavailable, StoreRefused, Unreadable)  # of a site's objects, or of all
LOOKS = 2  # at a site's objects, alone
TRIES = 3  # of a step that one site's objects keep from ending, though they can be read alone


class Doubt(PhotonError):
    """A site's objects could not be read: its fault, the machine's or the store's. The cause is `__cause__`."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"update of site '{site}' cannot be read: {reason}")
        self.site = site


class blame:
    """Whatever goes wrong inside is this site's: UpdateRejected, or Doubt where it may be the machine's."""

    def __init__(self, site: str) -> None:
        self._site = site

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, UpdateRejected | Doubt):
            return
        if isinstance(error, UNSURE):
            raise Doubt(self._site, reason(error)) from error
        raise UpdateRejected(self._site, reason(error)) from error


def blamed(site: str, loads: Iterator[Load]) -> Iterator[Load]:
    """Loads of a site's update; what goes wrong with its bytes is that update being bad."""
    with blame(site):
        for load in loads:
            yield partial(_call, site, load)


def _call(site: str, load: Load) -> Array:
    with blame(site):
        return load()


def reason(error: BaseException) -> str:
    """What to tell of an error that a site's objects made; with its kind, where the text alone says little."""
    if isinstance(error, PhotonError):
        return str(error)
    return f"it cannot be read: {type(error).__name__}: {told(error)}"


class Suspects:
    """The sites whose objects could not be read, over one step of a round.

    Args:
        run, t: the round.
    """

    def __init__(self, run: Run, t: int) -> None:
        self._run, self._t, self._base = run, t, run.round(t - 1)
        self._tries: dict[str, int] = {}

    def read(self, site: str, read: Callable[[], T]) -> T:
        """What is read of a site's objects.

        Raises:
            UpdateRejected: it cannot be, and that is the site's.
            whatever was met: it may be the machine's, or the store's.
        """
        while True:
            try:
                with blame(site):
                    return read()
            except Doubt as doubt:
                assert doubt.__cause__ is not None
                if rejected := self.look_again(site, doubt.__cause__, read):
                    raise rejected from doubt

    def judge(self, found: UpdateRejected | Doubt, updates: Mapping[str, UpdateManifest]) -> UpdateRejected | None:
        """What became of a step over these updates: whom to leave out, or None to do it again.

        Raises:
            whatever was met: it may be the machine's, or the store's, or is a file of ours.
        """
        if isinstance(found, UpdateRejected):
            return found
        update, cause = updates.get(found.site), found.__cause__
        assert cause is not None
        if update is None:  # a region's mean
            raise cause
        folder = self._run.site_dir(update.round, update.site, update.attempt)

        def read() -> None:
            for entry in (*update.files, *update.moments):
                self._run.store.check(entry, folder)

        return self.look_again(found.site, cause, read)

    def look_again(self, site: str, error: BaseException, read: Callable[[], object]) -> UpdateRejected | None:
        """Whether what was met is the site's; None if the step may be tried again.

        Args:
            site: whose objects they are.
            error: what was met.
            read: reads them all, alone.

        Raises:
            the error: nothing else can be read either.
        """
        for _ in range(LOOKS):
            self._read_ours(error)
            try:
                read()
            except UNSURE as again:
                error = again
            except Exception as found:
                return UpdateRejected(site, reason(found))
            else:
                self._tries[site] = self._tries.get(site, 0) + 1
                return None if self._tries[site] < TRIES else UpdateRejected(site, reason(error))
        self._read_ours(error)
        return UpdateRejected(site, reason(error))

    def _read_ours(self, error: BaseException) -> None:
        """A file of the round before, in the same way. Raises the error where it cannot be read either."""
        if self._base is None:
            raise error
        try:
            self._run.store.check(self._base.model[0], self._run.files_dir(self._t - 1))
        except UNSURE:
            raise error from None
