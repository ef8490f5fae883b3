"""Blame: which errors in reading or decoding a site's objects are the site's fault.

All of them are, except those that the machine or the store may cause: an unreachable store, a full disk, no
memory, no descriptors. After such an error the site's objects are read again, alone, and so is a file of the
coordinator's. If that file can be read and the site's objects cannot, the site is at fault. If neither can be
read, the step fails with the error and is retried.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

from photon_core.errors import PhotonError, StoreRefused, StoreUnavailable, Unreadable, UpdateRejected
from photon_core.run.run import Run
from photon_core.run.updates import files_of_update
from photon_core.tensors.reader import Array, Load
from schemas.manifests import UpdateManifest
from schemas.server_errors import told

T = TypeVar("T")

UNSURE = (OSError, MemoryError, StoreUnavailable, StoreRefused, Unreadable)  # may concern one site, or everything
LOOKS = 2  # times that a site's objects are read alone
TRIES = 3  # of a step that fails because of one site's objects, although they can be read alone


class Doubt(PhotonError):
    """A site's objects cannot be read, and the site, the machine or the store may be at fault. See `__cause__`."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"update of site '{site}' cannot be read: {reason}")
        self.site = site


class blame:
    """Errors in the block are blamed on this site: UpdateRejected, or Doubt if the machine may be at fault."""

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
    """The loads of a site's update; their errors are blamed on the site."""
    with blame(site):
        for load in loads:
            yield partial(_call, site, load)


def _call(site: str, load: Load) -> Array:
    with blame(site):
        return load()


def reason(error: BaseException) -> str:
    """The reason that an error of a site's objects gives for the rejection. An error that is not a PhotonError is
    named with its type, because its text alone says little."""
    if isinstance(error, PhotonError):
        return str(error)
    return f"it cannot be read: {type(error).__name__}: {told(error)}"


class Suspects:
    """The sites whose objects could not be read in one step of a round.

    Args:
        run, t: run and round.
    """

    def __init__(self, run: Run, t: int) -> None:
        self._run, self._t, self._base = run, t, run.round(t - 1)
        self._tries: dict[str, int] = {}

    def read(self, site: str, read: Callable[[], T]) -> T:
        """The result of reading a site's objects.

        Args:
            site: owner of the objects.
            read: function that reads them.

        Raises:
            UpdateRejected: they cannot be read, and the site is at fault.
            Exception: the error that was met; the machine or the store may be at fault.
        """
        while True:
            try:
                with blame(site):
                    return read()
            except Doubt as doubt:
                assert doubt.__cause__ is not None
                if rejected := self.look_again(site, doubt.__cause__, read):
                    raise rejected from doubt

    def judge(self, error: UpdateRejected | Doubt, updates: Mapping[str, UpdateManifest]) -> UpdateRejected | None:
        """The verdict on a step that failed over these updates: the site to exclude, or None to retry the step.

        Args:
            error: error that ended the step.
            updates: updates that the step read, by site.

        Raises:
            Exception: the cause of the doubt; the machine, the store or a file of the coordinator's may be at
                fault.
        """
        if isinstance(error, UpdateRejected):
            return error
        update, cause = updates.get(error.site), error.__cause__
        assert cause is not None
        if update is None:  # a region's mean
            raise cause
        folder = self._run.site_dir(update.round, update.site, update.attempt)

        def read() -> None:
            for entry in files_of_update(update):
                self._run.store.check(entry, folder)

        return self.look_again(error.site, cause, read)

    def look_again(self, site: str, error: BaseException, read: Callable[[], object]) -> UpdateRejected | None:
        """The rejection of the site if it is at fault; None if the step may be retried.

        Args:
            site: owner of the objects.
            error: error that was met.
            read: function that reads all of the objects, alone.

        Raises:
            Exception: the error that was met; the coordinator's file cannot be read either.
        """
        for _ in range(LOOKS):
            self._read_ours(error)
            try:
                read()
            except UNSURE as again:
                error = again
            except Exception as bad:
                return UpdateRejected(site, reason(bad))
            else:
                self._tries[site] = self._tries.get(site, 0) + 1
                return None if self._tries[site] < TRIES else UpdateRejected(site, reason(error))
        self._read_ours(error)
        return UpdateRejected(site, reason(error))

    def _read_ours(self, error: BaseException) -> None:
        """Read a file of the previous round in the same way. Raises `error` if that cannot be read either."""
        if self._base is None:
            raise error
        try:
            self._run.store.check(self._base.model[0], self._run.files_dir(self._t - 1))
        except UNSURE:
            raise error from None
