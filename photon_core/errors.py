"""The errors of Photon: one class for each kind of failure that users and operators see."""

from photon_core.formatting import printable
from schemas.errors import FederationError, PhotonError

__all__ = [
    "Cancelled",
    "ChildFailed",
    "CorruptFile",
    "DataError",
    "DeadlinePassed",
    "FederationError",
    "Killed",
    "ModelDiverged",
    "NotFinite",
    "PhotonError",
    "QuorumMissed",
    "StoreConflict",
    "StoreRefused",
    "StoreUnavailable",
    "Unreadable",
    "UpdateRejected",
]


class DataError(PhotonError):
    """A site's text or shards cannot be used: they are unreadable, corrupt, or fail an expectation."""


class StoreConflict(PhotonError):
    """Another writer committed first. The committed content is kept; this writer's files are unreferenced."""


class StoreUnavailable(PhotonError):
    """The store's server was unreachable or busy for longer than a step waits. A later retry may succeed."""


class StoreRefused(PhotonError):
    """The store's server does not permit the call with these credentials, or there are no credentials."""


class CorruptFile(PhotonError):
    """A file does not match the hash or size in the manifest that covers it, or is not a valid manifest."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, 2000))


class Unreadable(CorruptFile):
    """The file system refuses to read the file: permissions, or something that is not a file has its name."""


class UpdateRejected(PhotonError):
    """A site's update may not be aggregated (NaN, wrong base, wrong shape, zero tokens).

    Args:
        site: name of the site whose update is rejected.
        reason: one sentence for the manifest, the state message and the report.
    """

    def __init__(self, site: str, reason: str) -> None:
        reason = printable(reason)
        super().__init__(f"update of site '{site}' rejected: {reason}")
        self.site = site
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.site, self.reason)


class NotFinite(PhotonError):
    """The mean of all updates is NaN or infinite, and the pass does not look at single updates."""


class QuorumMissed(PhotonError):
    """Fewer sites committed an update than the quorum requires."""


class ChildFailed(PhotonError):
    """A child process (training, validation, evaluation) ended with an error or was killed."""


class Cancelled(ChildFailed):
    """A child process was stopped on request."""


class Killed(ChildFailed):
    """A child process was killed from outside: kill -9, a kernel out of memory, the end of its fork server."""


class DeadlinePassed(ChildFailed):
    """A child process was stopped at its deadline."""


class ModelDiverged(PhotonError):
    """A round's new model has no finite validation loss, so the next round cannot train from it."""


class StepOverflow(PhotonError):
    """The server optimizer's step makes the model infinite, although the updates are finite."""
